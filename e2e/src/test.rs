//! What a test is, and the macro that lists the tests of a file.

use anyhow::Result;
use kilo_testkit::netns::World;

/// Where a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In fresh namespaces with an empty world.
    Namespaces,
    /// As the runner itself, for tests that start something bigger, such as a virtual machine.
    Host,
}

/// One test.
#[derive(Clone, Copy)]
pub struct Test {
    /// Module path and function.
    pub name: &'static str,
    /// An error, a panic, or the end of the time limit is a failure; a
    /// [`Skip`](kilo_testkit::netns::Skip) is not.
    pub run: fn(&World) -> Result<()>,
    /// Seconds until it is killed.
    pub limit: u64,
    /// Where it runs.
    pub place: Place,
    /// It mostly waits: one of these at a time runs beside the others.
    pub waits: bool,
    /// Runs only when it is named in full with `--exact`.
    pub hidden: bool,
}

impl Test {
    /// What a list may leave out: a minute, in namespaces.
    pub const DEFAULT: Self =
        Self { name: "", run: |_| Ok(()), limit: 60, place: Place::Namespaces, waits: false, hidden: false };

    /// The name without that of the test program.
    pub fn short_name(&self) -> &'static str {
        self.name.split_once("::").map_or(self.name, |(_, rest)| rest)
    }
}

/// Lists the tests of a file as its `TESTS`: `tests![pings, survives_restart(limit = 120)];`
#[macro_export]
macro_rules! tests {
    ($($name:ident $(($($field:ident = $value:expr),*))?),* $(,)?) => {
        #[allow(clippy::needless_update, reason = "a test may say all there is to say")]
        pub const TESTS: &[$crate::Test] = &[$(
            $crate::Test {
                name: concat!(module_path!(), "::", stringify!($name)),
                run: $name,
                $($($field: $value,)*)?
                ..$crate::Test::DEFAULT
            }
        ),*];
    };
}

/// Names the files of a folder, one a line, and joins their tests as its `TESTS`.
#[macro_export]
macro_rules! test_files {
    ($($file:ident),* $(,)?) => {
        $(pub mod $file;)*
        pub const TESTS: &[&[$crate::Test]] = &[$($file::TESTS),*];
    };
}
