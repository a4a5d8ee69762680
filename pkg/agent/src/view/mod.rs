//! What people and programs see of a plan and of the facts it was made from: JSON, YAML and a text page. The
//! agent's `/plan` and `/facts` print it, `kgctl plan` prints it and reads it again. There is no secret in it.

mod facts;
mod input;

pub use facts::{FactsError, FactsView};
pub use input::InputView;
