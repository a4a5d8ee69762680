//! The walk over two sorted lists side by side that every comparison here is made of.

use std::cmp::Ordering;
use std::iter::Peekable;

/// What stands at one place of two lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side<A, B> {
    /// Only in the first list.
    Left(A),
    /// Only in the second list.
    Right(B),
    /// In both.
    Both(A, B),
}

/// Walks over two lists that are sorted by the same order.
pub(crate) struct Merge<A: Iterator, B: Iterator, F> {
    left: Peekable<A>,
    right: Peekable<B>,
    order: F,
}

/// Pairs up the items of two sorted lists that `order` calls equal.
pub(crate) fn merge<A, B, F>(left: A, right: B, order: F) -> Merge<A::IntoIter, B::IntoIter, F>
where
    A: IntoIterator,
    B: IntoIterator,
    F: FnMut(&A::Item, &B::Item) -> Ordering,
{
    Merge { left: left.into_iter().peekable(), right: right.into_iter().peekable(), order }
}

impl<A, B, F> Iterator for Merge<A, B, F>
where
    A: Iterator,
    B: Iterator,
    F: FnMut(&A::Item, &B::Item) -> Ordering,
{
    type Item = Side<A::Item, B::Item>;

    fn next(&mut self) -> Option<Self::Item> {
        let order = match (self.left.peek(), self.right.peek()) {
            (Some(a), Some(b)) => (self.order)(a, b),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        Some(match order {
            Ordering::Less => Side::Left(self.left.next()?),
            Ordering::Greater => Side::Right(self.right.next()?),
            Ordering::Equal => Side::Both(self.left.next()?, self.right.next()?),
        })
    }
}
