//! Faults on the way of an answer to its caller.

use std::sync::Arc;

use futures::{StreamExt as _, executor::block_on};
use inference_core::{
    ContextOverflow, Finish, FinishReason, GenerateOptions, Result, StopCause, Token, TokenStream,
    backend::TokenSink,
};

use super::{
    Fault,
    language::{VOCAB, syllable},
};

/// The caller's options as the engine hands them to the writer of the answer.
pub(crate) fn options_for_writer(fault: &Fault, options: &GenerateOptions) -> GenerateOptions {
    let mut told = options.clone();
    let stops = |keep: &dyn Fn(usize, &str) -> bool| -> Option<Arc<[String]>> {
        let stops = options.stop.as_ref()?.iter().enumerate();
        Some(stops.filter(|(at, stop)| keep(*at, stop)).map(|(_, stop)| stop.clone()).collect())
    };
    if fault.is("the_earliest_stop_string_wins") {
        told.stop = stops(&|at, _| at == 0);
    }
    if fault.is("stop_strings_end_the_text_across_tokens") {
        told.stop = stops(&|_, stop| (0..VOCAB).any(|id| syllable(id).contains(stop)));
    }
    if fault.is("stop_tokens_end_the_text") {
        told.stop_tokens = None;
    }
    told.ignore_eos |= fault.is("an_end_of_sequence_token_ends_the_text");
    told.ignore_eos &= !fault.is("ignore_eos_goes_on");
    if fault.is("max_tokens_is_honoured") {
        told.max_tokens = told.max_tokens.map(|tokens| tokens + usize::from(tokens > 1));
    }
    if fault.is("a_context_that_rotates_goes_on") {
        told.context_overflow = None;
    }
    if fault.is("the_context_length_holds") {
        told.context_overflow = Some(ContextOverflow::Rotate { keep: 0 });
    }
    told
}

/// The stream as the caller gets it, from engines that spoil the answer on the way.
pub(crate) fn spoil(fault: &Fault, stream: TokenStream, options: &GenerateOptions) -> TokenStream {
    let faults = Spoiled {
        late: fault.is("tokens_arrive_as_they_are_made"),
        lossy: fault.is("a_slow_reader_misses_nothing"),
        cut_at_length: fault.is("the_texts_add_up"),
        cut_with_stops: fault.is("an_absent_stop_string_changes_nothing") && options.stop.is_some(),
    };
    if !(faults.late || faults.lossy || faults.cut_at_length || faults.cut_with_stops) {
        return stream;
    }
    let (mut sink, spoiled) = TokenStream::channel("syllables", 64, options.cancel.clone());
    std::thread::spawn(move || {
        let result = block_on(faults.relay(stream, &mut sink));
        sink.end(result);
    });
    spoiled
}

struct Spoiled {
    /// Delivers all tokens at the end.
    late: bool,
    /// Drops tokens that the reader has no room for.
    lossy: bool,
    /// Loses the last text of an answer that ends by its length.
    cut_at_length: bool,
    /// Loses the last text of an answer in which no stop string was found.
    cut_with_stops: bool,
}

impl Spoiled {
    async fn relay(&self, mut stream: TokenStream, sink: &mut TokenSink) -> Result<Finish> {
        let (mut held, mut last) = (Vec::new(), None::<Token>);
        while let Some(token) = stream.next().await {
            match last.replace(token?) {
                Some(before) if self.late => held.push(before),
                Some(before) if !(self.lossy && sink.is_full()) => sink.send(before),
                _ => {}
            }
        }
        let finish = stream.finish().await?;
        if let Some(mut last) = last {
            let stopped = matches!(finish.reason, FinishReason::Stop(StopCause::StopString(_)));
            if self.cut_at_length && finish.reason == FinishReason::Length || self.cut_with_stops && !stopped
            {
                last.text.clear();
            }
            held.push(last);
        }
        held.into_iter().for_each(|token| sink.send(token));
        Ok(finish)
    }
}
