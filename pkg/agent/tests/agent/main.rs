//! The whole loop with two fakes: what is done to the machine and written to the cluster, and what is not.
#![allow(missing_docs)]

mod world;

mod enforcer;
mod failover;
mod news;
mod own_node;
mod random;
mod restart;
mod rounds;
mod upstream_bugs;
