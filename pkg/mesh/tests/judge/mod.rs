//! Judges plans by recordings of upstream: what a plan says as a document, how two documents are compared,
//! and which differences a quirk of upstream explains.

pub mod compare;
pub mod document;
pub mod quirks;
pub mod scenario;
