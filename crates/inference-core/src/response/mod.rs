//! From chosen tokens to a stream: what every engine has to do with an answer, written once.

mod detokenize;
mod stats;
mod stop_strings;
mod stream_decoder;
mod uniform;
mod writer;

pub use self::{
    detokenize::{Detokenize, Verbatim},
    stats::SharedStats,
    stop_strings::{StopPosition, StopStrings},
    stream_decoder::StreamDecoder,
    uniform::uniform,
    writer::ResponseWriter,
};
