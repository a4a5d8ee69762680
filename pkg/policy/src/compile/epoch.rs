//! The number in the mark of a connection that was allowed. A connection with another one is judged again.

use kilo_nftables::{Expr, Load, Table};

/// The number of the present, and whether marks of the past would be taken for it.
#[derive(Debug)]
pub(crate) struct Epoch {
    mask: u32,
    /// 0 is the mark of a connection that nobody has judged.
    current: u32,
    ambiguous: bool,
}

impl Epoch {
    /// The first, where nothing is known of a former one.
    pub(crate) fn new(mask: u32) -> Self {
        Self { mask, current: 1, ambiguous: true }
    }

    pub(crate) fn current(&self) -> u32 {
        self.current
    }

    /// The one that a table of the kernel has, of which this one goes on.
    pub(crate) fn adopt(&mut self, table: &Table) {
        let rules = table.chains.get("known").map_or(&[][..], |chain| &chain.rules);
        let mut exprs = rules.iter().flat_map(|rule| rule.exprs());
        let value = exprs.find_map(|expr| {
            let Expr::Bits { of: Load::CtMark, mask, value, .. } = expr else { return None };
            (*mask == self.mask).then_some(*value)
        });
        if let Some(value) = value.filter(|value| *value != 0) {
            self.current = value >> self.mask.trailing_zeros();
            self.ambiguous = false;
        }
    }

    /// Goes on to the next one. What the last one and those before it have marked is judged again.
    pub(crate) fn next(&mut self) {
        let last = self.mask >> self.mask.trailing_zeros();
        if self.current >= last {
            self.current = 1;
            self.ambiguous = true;
        } else {
            self.current += 1;
        }
    }

    /// The bits of marks that must be cleared first, once.
    pub(crate) fn sweep(&mut self) -> Option<u32> {
        std::mem::take(&mut self.ambiguous).then_some(self.mask)
    }
}
