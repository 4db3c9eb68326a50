//! The contract between programs that use language models and engines that run them.
