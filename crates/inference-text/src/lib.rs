//! Tokenizer, streaming detokenizer, chat templates and stop strings: what any native engine needs around a model.
