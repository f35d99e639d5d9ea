"""Writing with a decoder, and how probable it finds given answers: `Decoder` reads, the other modules decode."""
