"""What a request asks for, and what an answer says was used."""
