//! What tests need and programs do not: fakes of the two seams, builders of objects, and network namespaces.
#![forbid(unsafe_code)]

pub mod netns;
