"""What is measured on a GPU that several vLLM servers share. The same runs on the CPU. See README.md here."""
