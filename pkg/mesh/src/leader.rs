//! Who leads a segment. Every agent of a mesh elects on its own, so this is upstream's rule to the letter.

use std::net::SocketAddr;

use crate::parse::is_public;

/// What an election looks at in one candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// It asks to lead.
    pub(crate) volunteer: bool,
    /// Its endpoint, if that is an address or resolves to one.
    pub(crate) endpoint: Option<SocketAddr>,
}

/// The index of the leader of these candidates, which stand in order of their names: the first volunteer
/// with a public endpoint, else the first volunteer, else the first with a public endpoint, else the first.
pub(crate) fn elect(candidates: &[Candidate]) -> usize {
    let public = |c: &Candidate| c.endpoint.is_some_and(|e| is_public(e.ip()));
    let first = |test: &dyn Fn(&Candidate) -> bool| candidates.iter().position(test);
    first(&|c| c.volunteer && public(c))
        .or_else(|| first(&|c| c.volunteer))
        .or_else(|| first(&public))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's own table: a private, b public, c public, d private volunteer, e public volunteer.
    #[test]
    fn upstream_table() {
        let c = |volunteer, ip: &str| Candidate { volunteer, endpoint: format!("{ip}:1").parse().ok() };
        let (a, b, d, e) =
            (c(false, "10.0.0.1"), c(false, "1.1.1.1"), c(true, "10.0.0.2"), c(true, "2.2.2.2"));
        assert_eq!(elect(&[]), 0);
        assert_eq!(elect(&[a]), 0);
        assert_eq!(elect(&[a, b, b]), 1);
        assert_eq!(elect(&[a, d, e]), 2);
        assert_eq!(elect(&[a, b, b, d, e]), 4);
        assert_eq!(elect(&[a, b, d]), 2);
        assert_eq!(elect(&[Candidate { volunteer: false, endpoint: None }, a]), 0);
    }
}
