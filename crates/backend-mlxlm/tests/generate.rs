//! Generation and classification with the real mlx_lm.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::Arc;

use common::{EOS, VOCAB_SIZE, ids, load, reference, run_python, tiny_model};
use futures::StreamExt as _;
use inference_core::{
    CancellationToken, ClassifyOptions, Completion, Error, FinishReason, GenerateOptions, LoadOptions,
    Message, Prompt, StopCause, TextModel, TextModelExt as _, TokenStream, Xtc,
};
use tempfile::TempDir;
use tokio::sync::OnceCell;

/// One child for most of the tests: starting Python takes longer than what they ask of it.
async fn model() -> Arc<dyn TextModel> {
    static MODEL: OnceCell<(TempDir, Arc<dyn TextModel>)> = OnceCell::const_new();
    let make = || async {
        let folder = tiny_model();
        let model = load(folder.path(), LoadOptions::new()).await.unwrap();
        (folder, model)
    };
    MODEL.get_or_init(make).await.1.clone()
}

fn folder_of(model: &dyn TextModel) -> std::path::PathBuf {
    model.info().path.clone()
}

fn tokens(completion: &Completion) -> Vec<u32> {
    completion.tokens.iter().map(|token| token.id).collect()
}

async fn drain(stream: &mut TokenStream) -> usize {
    stream.map(Result::unwrap).count().await
}

#[tokio::test]
async fn greedy_ids_are_mlx_lms_own() {
    let model = model().await;
    let prompts = [ids(3, 1), ids(40, 2), ids(700, 3)];
    for (prompt, reference) in prompts.iter().zip(reference(&folder_of(&*model), None, &prompts, 24)) {
        let options = GenerateOptions::new().max_tokens(24).ignore_eos(true);
        let answer = model.complete(prompt.clone(), options).await.unwrap();
        assert_eq!(tokens(&answer), reference.tokens);
        assert_eq!(answer.finish.reason, FinishReason::Length);
        let metrics = answer.finish.metrics;
        assert_eq!(
            (metrics.prompt_tokens, metrics.cached_tokens, metrics.generated_tokens),
            (prompt.len(), 0, 24)
        );
        assert!(metrics.prefill > std::time::Duration::ZERO && metrics.decode > std::time::Duration::ZERO);
        assert!(metrics.time_to_first_token.unwrap() >= metrics.queued + metrics.prefill / 2);
        assert!(metrics.inter_token.is_some() && metrics.peak_memory_bytes >= metrics.active_memory_bytes);
        assert!(metrics.active_memory_bytes > 0);
    }
}

#[tokio::test]
async fn text_and_chat_are_tokenised_as_everywhere() {
    let model = model().await;
    let options = GenerateOptions::new().max_tokens(6).ignore_eos(true);
    let text = model.complete("Grüße", options.clone()).await.unwrap();
    let same = model
        .complete(Prompt::Tokens("Grüße".bytes().map(u32::from).collect()), options.clone())
        .await
        .unwrap();
    assert_eq!(tokens(&text), tokens(&same));
    let chat = model.complete(vec![Message::user("hi")], options.clone()).await.unwrap();
    // <|user|>hi<|end|><|assistant|>
    let rendered = vec![EOS + 1, u32::from(b'h'), u32::from(b'i'), EOS, EOS + 2];
    let same = model.complete(rendered, options).await.unwrap();
    assert_eq!((tokens(&chat), chat.text), (tokens(&same), same.text));
}

#[tokio::test]
async fn ten_at_once_give_what_ten_alone_give() {
    let model = model().await;
    let prompts: Vec<_> = (0..10).map(|i| Prompt::Tokens(ids(5 + 37 * i, i as u32))).collect();
    for options in [
        GenerateOptions::new().max_tokens(16).ignore_eos(true),
        GenerateOptions::new().max_tokens(16).ignore_eos(true).temperature(0.9).top_p(0.95).seed(42),
        GenerateOptions::new().max_tokens(16).ignore_eos(true).repetition_penalty(1.3).penalty_window(8),
    ] {
        let mut alone = Vec::new();
        for prompt in &prompts {
            alone.push(tokens(&model.complete(prompt.clone(), options.clone()).await.unwrap()));
        }
        let together = model.batch_generate(prompts.clone(), options).await;
        let together: Vec<_> = together.into_iter().map(|answer| tokens(&answer.unwrap())).collect();
        assert_eq!(together, alone);
    }
}

#[tokio::test]
async fn a_seed_reproduces_and_no_seed_does_not() {
    let model = model().await;
    let options = GenerateOptions::new().max_tokens(24).ignore_eos(true).temperature(1.5);
    let draw = |options: GenerateOptions| {
        let model = model.clone();
        async move { tokens(&model.complete(ids(9, 9), options).await.unwrap()) }
    };
    assert_eq!(draw(options.clone().seed(u64::MAX)).await, draw(options.clone().seed(u64::MAX)).await);
    assert_ne!(draw(options.clone().seed(1)).await, draw(options.clone().seed(2)).await);
    assert_ne!(draw(options.clone()).await, draw(options).await);
}

#[tokio::test]
async fn every_filter_reaches_the_sampler() {
    let model = model().await;
    let prompt = || Prompt::Tokens(ids(9, 4));
    let base = GenerateOptions::new().max_tokens(12).ignore_eos(true);
    let greedy = tokens(&model.complete(prompt(), base.clone()).await.unwrap());
    let hot = base.clone().temperature(2.0).seed(3);
    assert_ne!(tokens(&model.complete(prompt(), hot.clone()).await.unwrap()), greedy);
    // Each of these leaves only the likeliest token.
    for options in [hot.clone().top_k(1), hot.clone().top_p(1e-6), hot.clone().min_p(1.0)] {
        assert_eq!(tokens(&model.complete(prompt(), options).await.unwrap()), greedy);
    }
    let banned = base.clone().logit_bias([(greedy[0], f32::NEG_INFINITY)]);
    assert_ne!(tokens(&model.complete(prompt(), banned).await.unwrap())[0], greedy[0]);
    let xtc = base.clone().temperature(1e-4).xtc(Xtc::new(1.0, 0.0));
    assert_ne!(tokens(&model.complete(prompt(), xtc).await.unwrap()), greedy);
    let once = base.clone().presence_penalty(1e6).frequency_penalty(1.0).penalty_window(1000);
    let mut seen = tokens(&model.complete(prompt(), once).await.unwrap());
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 12, "no token comes twice under such a penalty");
}

#[tokio::test]
async fn what_ends_a_text_is_named_and_left_out() {
    let model = model().await;
    let prompt = || Prompt::Tokens(ids(9, 5));
    let complete = async |options: GenerateOptions| model.complete(prompt(), options).await.unwrap();
    let base = GenerateOptions::new().max_tokens(10);
    let plain = complete(base.clone().ignore_eos(true)).await;

    let ended = complete(base.clone().logit_bias([(EOS, 1e6)])).await;
    assert_eq!((tokens(&ended), ended.text.as_str()), (vec![], ""));
    assert_eq!(ended.finish.reason, FinishReason::Stop(StopCause::EndOfSequence(EOS)));
    assert_eq!((ended.finish.metrics.generated_tokens, ended.finish.metrics.time_to_first_token), (0, None));
    let later = complete(base.clone().logit_bias([(EOS, 1e6)]).min_tokens(4)).await;
    assert_eq!(later.tokens.len(), 4);
    assert_eq!(later.finish.reason, FinishReason::Stop(StopCause::EndOfSequence(EOS)));
    let never = complete(base.clone().logit_bias([(EOS, 1e6)]).ignore_eos(true)).await;
    assert_eq!((tokens(&never), never.finish.reason), (vec![EOS; 10], FinishReason::Length));

    let third = tokens(&plain)[2];
    let at = tokens(&plain).iter().position(|id| *id == third).unwrap();
    let stopped = complete(base.clone().stop_tokens([third]).ignore_eos(true)).await;
    assert_eq!(tokens(&stopped), tokens(&plain)[..at]);
    assert_eq!(stopped.finish.reason, FinishReason::Stop(StopCause::StopToken(third)));

    let ascii = complete(base.clone().logit_bias((b'a'..=b'z').map(|c| (u32::from(c), 100.0)))).await;
    let stop = &ascii.text[3..6];
    let cut =
        complete(base.clone().logit_bias((b'a'..=b'z').map(|c| (u32::from(c), 100.0))).stop([stop])).await;
    let at = ascii.text.find(stop).unwrap();
    assert_eq!(cut.text, ascii.text[..at]);
    assert_eq!(cut.finish.reason, FinishReason::Stop(StopCause::StopString(stop.to_owned())));
    assert_eq!(cut.finish.metrics.generated_tokens, at + 3);
}

#[tokio::test]
async fn an_end_beyond_the_vocabulary_ends_nothing() {
    let folder = tiny_model();
    let file = folder.path().join("config.json");
    let config = std::fs::read_to_string(&file).unwrap();
    let ends = format!("\"eos_token_id\":[{EOS},4000000000]");
    std::fs::write(&file, config.replace(&format!("\"eos_token_id\":{EOS}"), &ends)).unwrap();
    let model = load(folder.path(), LoadOptions::new()).await.unwrap();
    assert_eq!(model.info().eos_token_ids, [EOS]);
    let options = GenerateOptions::new().max_tokens(10).logit_bias([(EOS, 1e6)]).min_tokens(4);
    let answer = model.complete(ids(9, 5), options).await.unwrap();
    assert_eq!(answer.tokens.len(), 4);
}

#[tokio::test]
async fn limits_hold() {
    let model = model().await;
    let nothing = model.complete(ids(9, 1), GenerateOptions::new().max_tokens(0)).await.unwrap();
    assert_eq!((nothing.tokens.len(), nothing.finish.reason), (0, FinishReason::Length));
    assert_eq!(nothing.finish.metrics.prompt_tokens, 9);
    let context = model.info().context_length;
    let options = GenerateOptions::new().max_tokens(100).ignore_eos(true);
    let almost = model.complete(ids(context - 3, 1), options.clone()).await.unwrap();
    assert_eq!((almost.tokens.len(), almost.finish.reason), (3, FinishReason::Length));
    let error = model.complete(ids(context + 1, 1), options.clone()).await.unwrap_err();
    assert!(matches!(error, Error::ContextExceeded { tokens, limit, .. } if tokens == limit + 1), "{error}");
    let error = model.complete(vec![VOCAB_SIZE as u32], options.clone()).await.unwrap_err();
    assert!(matches!(error, Error::InvalidPrompt { .. }), "{error}");
    let error = model.complete("", options).await.unwrap_err();
    assert!(matches!(error, Error::InvalidPrompt { .. }), "{error}");
}

#[tokio::test]
async fn log_probabilities_are_those_of_the_choice_and_the_likeliest() {
    let model = model().await;
    let options =
        GenerateOptions::new().max_tokens(5).ignore_eos(true).temperature(1.0).seed(8).log_probabilities(4);
    let answer = model.complete(ids(9, 6), options).await.unwrap();
    for token in &answer.tokens {
        assert_eq!(token.top.len(), 4);
        assert!(token.top.windows(2).all(|pair| pair[0].log_probability >= pair[1].log_probability));
        let chosen = token.log_probability.unwrap();
        if let Some(same) = token.top.iter().find(|top| top.id == token.id) {
            assert_eq!(same.log_probability, chosen);
        } else {
            assert!(chosen <= token.top[3].log_probability);
        }
    }
    let mut ids = ids(9, 6);
    for token in &answer.tokens {
        let options = ClassifyOptions::new().logits(true);
        let logits =
            model.classify(vec![ids.clone().into()], options).await.unwrap().remove(0).logits.unwrap();
        let normaliser = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        let expected = f64::from(logits[token.id as usize]) - normaliser;
        assert!((expected - f64::from(token.log_probability.unwrap())).abs() < 1e-4);
        ids.push(token.id);
    }
}

#[tokio::test]
async fn a_cancelled_generation_ends_at_once_and_the_next_is_right() {
    let model = model().await;
    let options = || GenerateOptions::new().max_tokens(3000).ignore_eos(true);
    let expected = model.complete(ids(9, 7), options().max_tokens(8)).await.unwrap();

    // In the prefill.
    let cancel = CancellationToken::new();
    let mut stream = model.generate(ids(4000, 7).into(), options().cancel(cancel.clone())).await.unwrap();
    cancel.cancel();
    assert_eq!(drain(&mut stream).await, 0);
    assert_eq!(stream.finish().await.unwrap().reason, FinishReason::Cancelled);

    // In the decode.
    let cancel = CancellationToken::new();
    let mut stream = model.generate(ids(9, 7).into(), options().cancel(cancel.clone())).await.unwrap();
    let mut first = Vec::new();
    for _ in 0..8 {
        first.push(stream.next().await.unwrap().unwrap().id);
    }
    cancel.cancel();
    let rest = drain(&mut stream).await;
    let finish = stream.finish().await.unwrap();
    assert_eq!((first, finish.reason), (tokens(&expected), FinishReason::Cancelled));
    assert_eq!(finish.metrics.generated_tokens, 8 + rest);
    assert!(rest < 300, "{rest} tokens came after the cancellation");

    // By drop.
    let mut stream = model.generate(ids(9, 7).into(), options()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    let next = model.complete(ids(9, 7), options().max_tokens(8)).await.unwrap();
    assert_eq!(tokens(&next), tokens(&expected));
}

#[tokio::test]
async fn an_unread_stream_holds_up_nobody_and_stands_still() {
    let folder = tiny_model();
    let model = load(folder.path(), LoadOptions::new().max_batch(2)).await.unwrap();
    let cancel = CancellationToken::new();
    let long = GenerateOptions::new().max_tokens(4000).ignore_eos(true).cancel(cancel.clone());
    let mut unread = Vec::new();
    for _ in 0..2 {
        unread.push(model.generate(ids(9, 1).into(), long.clone()).await.unwrap());
    }
    // Both places are taken by streams that nobody reads: the third request gets one all the same.
    let options = GenerateOptions::new().max_tokens(8).ignore_eos(true);
    let expected = tokens(&model.complete(ids(9, 2), options.clone()).await.unwrap());
    cancel.cancel();
    for mut stream in unread {
        assert!(stream.finish().await.unwrap().metrics.generated_tokens <= 4000);
    }
    assert_eq!(tokens(&model.complete(ids(9, 2), options).await.unwrap()), expected);
    model.close().await.unwrap();
}

#[tokio::test]
async fn classification_is_one_forward_pass() {
    let model = model().await;
    let prompts = [ids(12, 1), ids(600, 2)];
    let labels = ["a", "bcd", "zz"];
    let options = ClassifyOptions::new().labels(labels).logits(true);
    let verdicts = model.classify(prompts.clone().map(Prompt::Tokens).to_vec(), options).await.unwrap();
    let references = reference(&folder_of(&*model), None, &prompts, 1);
    for ((verdict, reference), prompt) in verdicts.iter().zip(references).zip(&prompts) {
        assert_eq!((verdict.token, verdict.prompt_tokens), (reference.tokens[0], prompt.len()));
        let logits = verdict.logits.as_ref().unwrap();
        assert_eq!(logits.len(), VOCAB_SIZE);
        for (ours, theirs) in logits.iter().zip(&reference.logits) {
            assert!((ours - theirs).abs() < 2e-4, "{ours} {theirs}");
        }
        // A label's probability is the product of its tokens' probabilities, each after the ones before.
        for (label, score) in labels.iter().zip(&verdict.labels) {
            let (mut given, mut expected) = (prompt.clone(), 0.0);
            for byte in label.bytes() {
                let step = ClassifyOptions::new().labels([char::from(byte)]);
                let step = model.classify(vec![given.clone().into()], step).await.unwrap().remove(0);
                expected += step.labels[0].log_probability;
                given.push(u32::from(byte));
            }
            assert!((score.log_probability - expected).abs() < 1e-3, "{label}: {score:?} {expected}");
        }
    }
    let cancel = CancellationToken::new();
    cancel.cancel();
    let error =
        model.classify(vec![ids(9, 1).into()], ClassifyOptions::new().cancel(cancel)).await.unwrap_err();
    assert!(matches!(error, Error::Cancelled));
}

#[tokio::test]
async fn totals_add_up() {
    let folder = tiny_model();
    let model = load(folder.path(), LoadOptions::new()).await.unwrap();
    let options = GenerateOptions::new().max_tokens(5).ignore_eos(true);
    for _ in 0..3 {
        model.complete(ids(7, 1), options.clone()).await.unwrap();
    }
    let stats = model.stats();
    assert_eq!((stats.requests, stats.active, stats.failed, stats.cancelled), (3, 0, 0, 0));
    assert_eq!((stats.prompt_tokens, stats.generated_tokens), (21, 15));
    assert!(stats.memory.active_bytes > 0);
    model.close().await.unwrap();
    assert!(matches!(model.generate(ids(7, 1).into(), options).await, Err(Error::Closed)));
    model.close().await.unwrap();
}

#[tokio::test]
async fn an_adapter_made_by_mlx_lm_is_applied() {
    let (folder, adapter) = (tiny_model(), tempfile::tempdir().unwrap());
    run_python("make.py", &["adapter", adapter.path().to_str().unwrap(), folder.path().to_str().unwrap()]);
    let prompts = [ids(9, 1)];
    let expected = reference(folder.path(), Some(adapter.path()), &prompts, 12).remove(0).tokens;
    assert_ne!(expected, reference(folder.path(), None, &prompts, 12).remove(0).tokens);
    let model = load(folder.path(), LoadOptions::new().adapter(adapter.path())).await.unwrap();
    let options = GenerateOptions::new().max_tokens(12).ignore_eos(true);
    assert_eq!(tokens(&model.complete(ids(9, 1), options).await.unwrap()), expected);
    model.close().await.unwrap();
}

/// Llama 4's chunked cache cannot be batched: rows take turns.
#[tokio::test]
async fn a_model_that_cannot_be_batched_runs_row_by_row() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny_model();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny.path().join(file), folder.path().join(file)).unwrap();
    }
    let config = serde_json::json!({
        "model_type": "llama4", "eos_token_id": EOS, "text_config": {
            "model_type": "llama4_text", "attention_bias": false, "attention_chunk_size": 64, "head_dim": 8,
            "hidden_size": 32, "interleave_moe_layer_step": 1, "intermediate_size": 32, "intermediate_size_mlp": 64,
            "max_position_embeddings": 4096, "num_attention_heads": 4, "num_experts_per_tok": 1,
            "num_hidden_layers": 4, "num_key_value_heads": 2, "num_local_experts": 2, "rms_norm_eps": 1e-5,
            "rope_scaling": null, "rope_theta": 10000.0, "use_qk_norm": true, "vocab_size": VOCAB_SIZE,
        },
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    run_python("make.py", &["model", folder.path().to_str().unwrap()]);
    let model = load(folder.path(), LoadOptions::new().prefill_chunk(16)).await.unwrap();
    let prompts = [ids(9, 1), ids(40, 2)];
    let references = reference(folder.path(), None, &prompts, 10);
    let options = GenerateOptions::new().max_tokens(10).ignore_eos(true);
    let together = model.batch_generate(prompts.clone().map(Prompt::Tokens).to_vec(), options.clone()).await;
    for (answer, reference) in together.into_iter().zip(&references) {
        assert_eq!(tokens(&answer.unwrap()), reference.tokens);
    }
    let cancel = CancellationToken::new();
    let mut stream =
        model.generate(ids(3000, 3).into(), options.clone().cancel(cancel.clone())).await.unwrap();
    cancel.cancel();
    assert_eq!(stream.finish().await.unwrap().reason, FinishReason::Cancelled);
    let next = model.complete(prompts[0].clone(), options).await.unwrap();
    assert_eq!(tokens(&next), references[0].tokens);
    model.close().await.unwrap();
}

#[test]
fn the_child_keeps_its_promises() {
    let child = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("python/child.py");
    assert_eq!(run_python("check_child.py", &[child.to_str().unwrap()]), "ok\n");
}
