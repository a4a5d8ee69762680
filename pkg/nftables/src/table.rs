//! Tables.

/// An nftables table of family `inet`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
}

/// The changes of one table that the kernel carries out together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {}
