//! What people and programs see of a plan and of the facts it was made from: JSON, YAML and a text page. The
//! agent's `/plan` and `/facts` print it, `kgctl plan` prints it and reads it again. There is no secret in it.

mod facts;
mod input;
mod plan;
mod text;
mod translated;

pub use facts::{FactsError, FactsView};
pub use input::InputView;
pub use plan::{
    ConfView, MeshPeerView, MeshView, PlanSource, PlanView, RouteView, RuleView, SegmentView, WgPeerView,
};
pub use text::findings_text;
pub use translated::{NodeView, PeerView, TranslatedView};
