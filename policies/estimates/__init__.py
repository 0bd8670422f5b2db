"""What is not known yet and has to be guessed: answer lengths, and when prefill/decode pairs pay."""
