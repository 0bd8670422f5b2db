from hashlib import sha256

import pytest

from router.edge.credentials import digests


def digest(key):
    return sha256(key).digest()


@pytest.mark.parametrize(
    ("headers", "keys"),
    [
        ({}, []),
        ({b"authorization": b"Bearer ka"}, [b"ka"]),
        ({b"authorization": b"bearer   ka "}, [b"ka"]),
        ({b"x-api-key": b" ka "}, [b"ka"]),
        ({b"authorization": b"Bearer k1", b"x-api-key": b"k2"}, [b"k1", b"k2"]),
        ({b"authorization": b"Basic eDp5", b"x-api-key": b"k2"}, [b"k2"]),
        ({b"authorization": b"sk-ka"}, []),
        ({b"authorization": b"Bearer "}, []),
        ({b"authorization": b"Bearer \xff\x00"}, [b"\xff\x00"]),
        ({b"authorization": b"", b"x-api-key": b""}, []),
    ],
)
def test_keys_stand_in_openais_place_or_in_anthropics_and_leave_as_digests(headers, keys):
    assert digests(headers) == tuple(digest(key) for key in keys)
