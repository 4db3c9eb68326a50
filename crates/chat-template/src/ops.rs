//! Python's operators and what its strings do, charged for as they go.

pub(crate) mod binary;
pub(crate) mod format;
pub(crate) mod json_text;
pub(crate) mod lookup;
pub(crate) mod method_names;
pub(crate) mod numbers;
pub(crate) mod print;
pub(crate) mod slices;
pub(crate) mod sort;
pub(crate) mod strings;
