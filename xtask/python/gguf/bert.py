"""Writes a BERT with its pooling as GGUF, as llama.cpp's converter does: python bert.py FOLDER OUT.gguf"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, GGUFWriter, PoolingType, TokenType, get_tensor_name_map


def tensors(path):
    """The tensors of a safetensors file of float32."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = entry["data_offsets"]
            part = data[8 + length + begin : 8 + length + end]
            yield name, np.frombuffer(part, np.float32).reshape(entry["shape"])


def add_vocabulary(writer, folder):
    """WordPiece with a mark where words begin, in place of one where they go on."""
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    texts = sorted(vocab, key=vocab.get)

    def marked(text):
        if text in special:
            return text
        return text[2:] if text.startswith("##") else "\u2581" + text

    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([marked(text) for text in texts])
    writer.add_token_types([TokenType.CONTROL if text in special else TokenType.NORMAL for text in texts])
    for add, text in [
        (writer.add_unk_token_id, "[UNK]"), (writer.add_sep_token_id, "[SEP]"), (writer.add_pad_token_id, "[PAD]"),
        (writer.add_bos_token_id, "[CLS]"), (writer.add_mask_token_id, "[MASK]"),
    ]:
        add(vocab[text])


def main():
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((folder / "config.json").read_text())
    pooling = json.loads((folder / "1_Pooling/config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"], pooling
    writer = GGUFWriter(out, "bert")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.MEAN)
    writer.add_token_type_count(config["type_vocab_size"])
    add_vocabulary(writer, folder)
    names = get_tensor_name_map(MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, value in tensors(folder / "model.safetensors"):
        if name.startswith("pooler."):
            continue
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert mapped, name
        writer.add_tensor(mapped, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
