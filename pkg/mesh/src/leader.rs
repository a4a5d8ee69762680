//! Who leads a segment if nobody is reported. Every agent of a mesh elects on its own, so this is upstream's rule
//! to the letter.

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

/// The places of these candidates, who stand in order of their names, in the order in which they come to lead:
/// volunteers before others, and among both those with a public endpoint first.
pub(crate) fn succession(candidates: &[Candidate]) -> Vec<usize> {
    let public = |c: &Candidate| c.endpoint.is_some_and(|e| is_public(e.ip()));
    let mut places: Vec<usize> = (0..candidates.len()).collect();
    // The sort is stable: names stay in order.
    places.sort_by_key(|&i| (!candidates[i].volunteer, !public(&candidates[i])));
    places
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
        let elect = |candidates: &[Candidate]| succession(candidates)[0];
        assert_eq!(elect(&[a, b, b]), 1);
        assert_eq!(elect(&[a, d, e]), 2);
        assert_eq!(elect(&[a, b, b, d, e]), 4);
        assert_eq!(elect(&[a, b, d]), 2);
        assert_eq!(elect(&[Candidate { volunteer: false, endpoint: None }, a]), 0);
        assert_eq!(succession(&[a, b, d, e, b]), [3, 2, 1, 4, 0]);
        assert!(succession(&[]).is_empty());
        assert_eq!(elect(&[a]), 0);
    }
}
