//! Load a language model from a folder and stream text out of it, whichever engine runs it.
