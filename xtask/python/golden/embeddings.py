"""Makes the golden fixtures of embeddings and reranking: python embeddings.py OUT [VARIANT ...]

Each is a folder as sentence-transformers reads it, with a small tokenizer and rules from which weights are made, and embedding.json: what
sentence-transformers makes of some texts, and transformers of pairs of texts.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from weights import write

TEXTS = [
    "The cat sleeps on the warm roof.",
    "a",
    "Cats like to sleep where it is warm, and they sleep for most of the day!",
    "The price of tin rose by 3.5 % in March 2024; that of copper fell.",
    "Straße, Übermut, naïve café - ÉTÉ",
    "東京 is the capital of Japan. 日本",
    "",
    "  two  spaces\tand a tab\n",
    "Dogs sleep where they may. " * 3,
    "How many words does a text need before it is cut? This one goes on and on, and on, until no model of this size can hold "
    "it: a hundred words, and then some more, about cats, dogs, tin, copper, roofs and the price of it all in March.",
]
QUERY = "where do cats sleep"
DOCUMENTS = [TEXTS[0], TEXTS[3], "dogs", TEXTS[9], "Cats sleep."]
POSITIONS = 64


def wordpiece(bos="[CLS]", eos="[SEP]", unk="[UNK]", pad="[PAD]", mask="[MASK]", types=(0, 1)):
    specials = [pad, unk, bos, eos, mask] if bos == "[CLS]" else [bos, pad, eos, unk, mask]
    tokenizer = Tokenizer(models.WordPiece(unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=130, special_tokens=specials, show_progress=False))
    one, two = types
    pair = f"{bos}:0 $A:0 {eos}:0 $B:{two} {eos}:{two}" if bos == "[CLS]" else f"{bos}:0 $A:0 {eos}:0 {eos}:0 $B:0 {eos}:0"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos}:{one} $A:{one} {eos}:{one}", pair=pair,
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (bos, eos)],
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, dict(unk_token=unk, pad_token=pad, cls_token=bos, sep_token=eos)


def byte_level(specials, post, pad, bos=None, eos=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=specials, show_progress=False
        ),
    )
    tokenizer.post_processor = post(tokenizer)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, {key: value for key, value in dict(pad_token=pad, bos_token=bos, eos_token=eos).items() if value}


def roberta():
    def post(tokenizer):
        return processors.RobertaProcessing(("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>")))
    return byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], post, "<pad>", "<s>", "</s>")


def modernbert():
    def post(tokenizer):
        return processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
        )
    return byte_level(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], post, "[PAD]")


def qwen():
    def post(tokenizer):
        end = "<|endoftext|>"
        return processors.TemplateProcessing(
            single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
        )
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "yes", "no"]
    return byte_level(specials, post, "<|endoftext|>", eos="<|endoftext|>")


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=150, special_tokens=specials, unk_token="<unk>", show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, dict(unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def gemma():
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=330, special_tokens=pieces, show_progress=False))
    text = json.loads(tokenizer.to_str())
    text["added_tokens"] = [token for token in text["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(text))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A <eos> <bos>:1 $B:1 <eos>:1", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer, dict(pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


TINY = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=POSITIONS)
SCORED = dict(num_labels=1, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
GEMMA3 = dict(
    TINY, num_hidden_layers=3, num_key_value_heads=1, head_dim=16, hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=24,
    rope_local_base_freq=100.0, rope_theta=10000.0, sliding_window=16, sliding_window_pattern=2, rms_norm_eps=1e-5,
    use_bidirectional_attention=True, architectures=["Gemma3TextModel"], bos_token_id=2, eos_token_id=1, pad_token_id=0,
)
QWEN3 = dict(
    TINY, num_key_value_heads=2, head_dim=8, max_position_embeddings=160, rope_theta=1000.0, rms_norm_eps=1e-5,
    architectures=["Qwen3ForCausalLM"], tie_word_embeddings=True, eos_token_id=0, bos_token_id=0,
)
# name -> config, tokenizer, pooling, whether vectors are normalised, sizes of dense layers, prefixes
VARIANTS = {
    "bert": (dict(TINY, model_type="bert", hidden_act="gelu", layer_norm_eps=1e-3, type_vocab_size=2, **SCORED,
                  architectures=["BertForSequenceClassification"]), wordpiece(), "mean", True, [], {}),
    "distilbert": (dict(model_type="distilbert", dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=POSITIONS,
                        activation="gelu", **SCORED, architectures=["DistilBertForSequenceClassification"]),
                   wordpiece(), "cls", False, [24], {}),
    "roberta": (dict(TINY, model_type="roberta", hidden_act="relu", layer_norm_eps=1e-4, type_vocab_size=1, pad_token_id=1,
                     max_position_embeddings=POSITIONS + 2, **SCORED, architectures=["RobertaForSequenceClassification"]),
                roberta(), "max", True, [], {}),
    "xlm-roberta": (dict(TINY, model_type="xlm-roberta", hidden_act="gelu", layer_norm_eps=1e-5, type_vocab_size=1, pad_token_id=1,
                         max_position_embeddings=POSITIONS + 2, **SCORED, architectures=["XLMRobertaForSequenceClassification"]),
                    unigram(), "weightedmean", True, [], dict(query="query: ", passage="passage: ")),
    "mpnet": (dict(TINY, model_type="mpnet", hidden_act="gelu", layer_norm_eps=1e-4, relative_attention_num_buckets=32,
                   pad_token_id=1, bos_token_id=0, eos_token_id=2, max_position_embeddings=POSITIONS + 2, **SCORED,
                   architectures=["MPNetForSequenceClassification"]),
              wordpiece("<s>", "</s>", "<unk>", "<pad>", "<mask>", (0, 0)), "mean_sqrt_len_tokens", False, [], {}),
    "modernbert": (dict(TINY, model_type="modernbert", num_hidden_layers=4, hidden_activation="gelu", norm_eps=1e-4, local_attention=10,
                        global_attn_every_n_layers=3, global_rope_theta=2000.0, local_rope_theta=100.0, classifier_pooling="mean",
                        **SCORED, architectures=["ModernBertForSequenceClassification"], pad_token_id=0, cls_token_id=1,
                        sep_token_id=2, bos_token_id=1, eos_token_id=2), modernbert(), "mean", True, [], {}),
    "nomic_bert": (dict(model_type="nomic_bert", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                        max_position_embeddings=POSITIONS, hidden_act="silu", layer_norm_eps=1e-4, type_vocab_size=2,
                        rope_parameters=dict(rope_type="default", rope_theta=500.0), architectures=["NomicBertModel"]),
                   wordpiece(), "mean", True, [], dict(search_query="search_query: ", search_document="search_document: ")),
    "qwen3": (dict(QWEN3, model_type="qwen3"), qwen(), "lasttoken", True, [],
              dict(query="Instruct: Given a question, find what answers it\nQuery:", document="")),
    "gemma3_text": (dict(GEMMA3, model_type="gemma3_text"), gemma(), "mean", True, [48, 32],
                    dict(query="task: search result | query: ", document="title: none | text: ")),
}


def rules(config, folder):
    """A rule for each tensor that transformers saves of a model with this config."""
    (folder / "config.json").write_text(json.dumps(config))
    loaded = AutoConfig.from_pretrained(folder)
    architecture = config["architectures"][0]
    kind = AutoModel
    if architecture.endswith("ForSequenceClassification"):
        kind = AutoModelForSequenceClassification
    elif architecture.endswith("ForCausalLM"):
        kind = AutoModelForCausalLM
    kind.from_config(loaded).save_pretrained(folder / "saved")
    found = []
    with safe_open(folder / "saved/model.safetensors", "np") as file:
        for name in sorted(file.keys()):
            shape = list(file.get_slice(name).get_shape())
            offset = "gemma" in config["model_type"]
            norm = len(shape) == 1 and name.endswith("weight")
            mean = 1.0 if norm and not offset else 0.0
            spread = 0.3 if len(shape) == 1 else 2.2 if "relative_attention_bias" in name else 2.6 / shape[-1] ** 0.5
            if "embed" in name and len(shape) == 2:
                spread = 1.0 if "word" in name or "tok" in name else 0.5
            found.append([name, "F32", shape, mean, spread])
    return found


def build(name, folder):
    config, (tokenizer, specials), pooling, normalize, dense, prefixes = VARIANTS[name]
    config = dict(config, vocab_size=tokenizer.get_vocab_size(), torch_dtype="float32")
    with tempfile.TemporaryDirectory() as scratch:
        specs = rules(config, Path(scratch))
    write(folder, config, specs)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    longest = 120 if name == "qwen3" else 48
    settings = dict(specials, tokenizer_class="PreTrainedTokenizerFast", model_max_length=longest)
    if "bert" in name and "[CLS]" in json.dumps(specials):
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        settings["model_input_names"] = ["input_ids", "attention_mask"]
    files = {"tokenizer_config.json": settings, "sentence_bert_config.json": dict(max_seq_length=longest, do_lower_case=False)}
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    width = config.get("hidden_size", config.get("dim"))
    files["1_Pooling/config.json"] = dict(word_embedding_dimension=width, pooling_mode=pooling)
    if pooling in ("mean", "cls"):  # as older versions write it
        modes = dict(pooling_mode_cls_token=pooling == "cls", pooling_mode_mean_tokens=pooling == "mean")
        files["1_Pooling/config.json"] = dict(word_embedding_dimension=width, **modes)
    for index, outputs in enumerate(dense, 2):
        kinds.append((f"{index}_Dense", "Dense"))
        bias = name == "distilbert"
        activation = "torch.nn.modules.activation.Tanh" if bias else "torch.nn.modules.linear.Identity"
        files[f"{index}_Dense/config.json"] = dict(in_features=width, out_features=outputs, bias=bias, activation_function=activation)
        layer = [["linear.weight", "F32", [outputs, width], 0.0, 2.0 / width**0.5]] + [["linear.bias", "F32", [outputs], 0.0, 0.3]] * bias
        write(folder / f"{index}_Dense", {}, layer)
        files[f"{index}_Dense/tensors.json"] = layer
        width = outputs
    kinds += [(f"{len(kinds)}_Normalize", "Normalize")] * normalize
    files["modules.json"] = [
        dict(idx=index, name=str(index), path=path, type=f"sentence_transformers.models.{kind}")
        for index, (path, kind) in enumerate(kinds)
    ]
    if prefixes:
        files["config_sentence_transformers.json"] = dict(prompts=prefixes, default_prompt_name=None)
    for path, value in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(json.dumps(value) + "\n")
    lines = ",\n".join(json.dumps(spec) for spec in specs)
    (folder / "tensors.json").write_text(f"[\n{lines}\n]\n")
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    return config


def judged(folder):
    """By how much `yes` exceeds `no`, as the model card of Qwen3-Reranker computes it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encode = lambda text: Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    before = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. Note that "
        'the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    behind = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    asked = "<Instruct>: {}\n<Query>: {}\n<Document>: {}"
    task = "Given a web search query, retrieve relevant passages that answer the query"
    logits = []
    for document in DOCUMENTS:
        ids = encode(before) + encode(asked.format(task, QUERY, document)) + encode(behind)
        with torch.no_grad():
            last = model(torch.tensor([ids])).logits[0, -1]
        logits.append(float(last[encode("yes")[0]] - last[encode("no")[0]]))
    return logits


def rounded(values, digits=6):
    return [[round(float(x), digits) for x in row] for row in values]


def main(out, names):
    for name in names or VARIANTS:
        folder = Path(out) / name
        shutil.rmtree(folder, ignore_errors=True)
        config = build(name, folder)
        if name == "qwen3":  # the questions of the reranker are long
            config["max_position_embeddings"] = 1024
            (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        reference = SentenceTransformer(str(folder), device="cpu", model_kwargs=dict(attn_implementation="eager"))
        prefixes = VARIANTS[name][5]
        golden = dict(texts=TEXTS, vectors=rounded(reference.encode(TEXTS, batch_size=3)))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        golden["ids"] = [tokenizer.encode(text).ids for text in TEXTS]
        if prefixes:
            prefix = sorted(prefixes)[-1]
            golden["prefix"] = prefix
            golden["prefixed"] = rounded(reference.encode(TEXTS[:3], prompt_name=prefix))
        golden |= dict(query=QUERY, documents=DOCUMENTS)
        if config["architectures"][0].endswith("ForSequenceClassification"):
            encoder = CrossEncoder(str(folder), device="cpu", max_length=POSITIONS, activation_fn=torch.nn.Identity())
            golden["logits"] = [round(float(x), 6) for x in encoder.predict([(QUERY, text) for text in DOCUMENTS])]
        if name == "qwen3":
            golden["logits"] = [round(x, 6) for x in judged(folder)]
        (folder / "embedding.json").write_text(
            "{\n" + ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in golden.items()) + "\n}\n"
        )
        for weights in folder.rglob("*.safetensors"):
            weights.unlink()
        spread = np.std(np.array(golden["vectors"]))
        print(f"{name}: {len(golden['vectors'][0])} dimensions, std {spread:.3f}, logits {golden.get('logits')}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
