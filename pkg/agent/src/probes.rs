//! Questions to other nodes that are under way, off the loop.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::task::JoinSet;

/// The questions under way. Each ends by itself within seconds.
#[derive(Debug, Default)]
pub(crate) struct Probes(JoinSet<Option<(Arc<str>, IpAddr)>>);

impl Probes {
    /// Asks a node at an address.
    pub(crate) fn ask(
        &mut self,
        node: Arc<str>,
        address: IpAddr,
        answers: impl Future<Output = bool> + Send + 'static,
    ) {
        self.0.spawn(async move { answers.await.then_some((node, address)) });
    }

    /// Waits for an answer; for ever when nobody is asked. May be cancelled.
    pub(crate) async fn answered(&mut self) -> (Arc<str>, IpAddr) {
        while let Some(ended) = self.0.join_next().await {
            if let Ok(Some(answer)) = ended {
                return answer;
            }
        }
        std::future::pending().await
    }
}
