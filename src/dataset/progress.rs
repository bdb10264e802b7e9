//! How far a consumer is in an epoch.

use serde::{Deserialize, Serialize};

use crate::record::{Boundary, Codec};

/// Where reading goes on inside of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// The next record's first byte: in the object, or in what it decompresses to.
    pub(super) offset: u64,
    /// Records before it.
    pub(super) record: u64,
    /// How the object is compressed.
    pub(super) codec: Codec,
}

impl Place {
    pub(super) fn boundary(self) -> Boundary {
        Boundary {
            offset: self.offset,
            codec: self.codec,
        }
    }
}

/// A place in a consumer's list of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// Which item of the list.
    pub(super) item: u64,
    /// Where in it; none: it is not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) place: Option<Place>,
}

/// A window that is being given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Begun {
    /// Samples in it.
    pub(super) len: u64,
    /// Those of them that were given out, in the window's order.
    pub(super) given: u64,
    /// What follows it.
    pub(super) next: Cursor,
}

/// How far a consumer is in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Progress {
    /// What was given out is before this, apart from the window that begins here.
    pub(super) at: Cursor,
    /// That window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) window: Option<Begun>,
    /// Samples given out.
    pub(super) given: u64,
    /// It has had all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) done: bool,
}

impl Progress {
    pub(super) fn done() -> Self {
        Self {
            done: true,
            ..Self::default()
        }
    }

    /// The first record that was in no window yet.
    pub(super) fn unread(self) -> Cursor {
        self.window.map_or(self.at, |window| window.next)
    }
}
