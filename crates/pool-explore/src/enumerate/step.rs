//! What can happen next in a small world.

use std::fmt;

/// One step: something a caller or a closer does, something that becomes of a connection, or time that passes.
///
/// Callers, opens, closes, closers and retries are meant by their place in the lists of the world, workspaces by
/// their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The caller asks for a connection.
    Ask(usize),
    /// The caller, having been woken, fetches its answer.
    Fetch(usize),
    /// The caller gives up waiting, or runs out of time.
    GiveUp(usize),
    /// The caller gives its connection back.
    Release(usize),
    /// The caller's connection breaks, and is given back as broken.
    Break(usize),
    /// The caller has its connection closed on purpose.
    Discard(usize),
    /// The check before the caller gets its connection finds it broken.
    CheckFails(usize),
    /// An open under way succeeds.
    OpenSucceeds(usize),
    /// An open under way fails.
    OpenFails(usize),
    /// An open under way takes long.
    OpenIsSlow(usize),
    /// An open that takes long is given up by those who wait for it; it is still under way.
    OpenIsGivenUp(usize),
    /// The server answered again since the open began, so it is given up without having failed.
    OpenIsOvertaken(usize),
    /// The server is found not to answer.
    ServerIsLost,
    /// The server answers again.
    ServerAnswers,
    /// Whoever was to do what was asked is gone: the runtime has ended.
    RuntimeEnds,
    /// Somebody else begins to do what is asked, on another runtime.
    AnotherBegins,
    /// A close under way is confirmed by the server.
    CloseIsConfirmed(usize),
    /// A close under way takes long.
    CloseIsSlow(usize),
    /// The pause after a failed open is over.
    RetryIsDue(usize),
    /// The moment comes that the registry was promised.
    DueComes,
    /// The catalog says that a workspace exists.
    IsFound(usize),
    /// The catalog says that a workspace does not exist.
    IsMissing(usize),
    /// The limit of the share is set.
    LimitIs(u32),
    /// A quantum passes.
    QuantumPasses,
    /// So much time passes that whatever is idle has been so for too long.
    IdleTimeout,
    /// The session of an idle connection ends on the server; the driver is asked about it at this moment.
    SessionVanishes(usize),
    /// The driver tells which session has vanished.
    VanishedIsTold,
    /// The database of a workspace is made by somebody.
    DatabaseIsMade(usize),
    /// Somebody begins to close a workspace.
    BeginClose(usize),
    /// Somebody begins to close everything, for good.
    CloseAll,
    /// A closer, having been told, looks whether it is done, and then ends.
    CloserLooks(usize),
    /// A closer is dropped before it is done.
    CloserGoes(usize),
    /// A closer runs out of time, and lists the leases that it is going to cut.
    Deadline(usize),
    /// A closer cuts the leases that it has listed.
    Cut(usize),
    /// The server confirms that the leases that a closer has cut are gone.
    CutIsConfirmed(usize),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ask(c) => write!(f, "caller {c} asks"),
            Self::Fetch(c) => write!(f, "caller {c} was woken and fetches its answer"),
            Self::GiveUp(c) => write!(f, "caller {c} gives up"),
            Self::Release(c) => write!(f, "caller {c} gives its connection back"),
            Self::Break(c) => write!(f, "the connection of caller {c} breaks and comes back"),
            Self::Discard(c) => write!(f, "caller {c} has its connection closed"),
            Self::CheckFails(c) => write!(f, "the connection for caller {c} is checked and found broken"),
            Self::OpenSucceeds(i) => write!(f, "open number {i} succeeds"),
            Self::OpenFails(i) => write!(f, "open number {i} fails"),
            Self::OpenIsSlow(i) => write!(f, "open number {i} takes long"),
            Self::OpenIsGivenUp(i) => write!(f, "open number {i} is given up, and goes on"),
            Self::OpenIsOvertaken(i) => write!(f, "open number {i} began before the server answered again"),
            Self::ServerIsLost => f.write_str("the server does not answer"),
            Self::ServerAnswers => f.write_str("the server answers again"),
            Self::RuntimeEnds => f.write_str("the runtime ends"),
            Self::AnotherBegins => f.write_str("another runtime begins"),
            Self::CloseIsConfirmed(i) => write!(f, "close number {i} is confirmed"),
            Self::CloseIsSlow(i) => write!(f, "close number {i} takes long"),
            Self::RetryIsDue(i) => write!(f, "the pause of retry number {i} is over"),
            Self::DueComes => f.write_str("the promised moment comes"),
            Self::IsFound(i) => write!(f, "look-up number {i} finds its database"),
            Self::IsMissing(i) => write!(f, "look-up number {i} finds no database"),
            Self::LimitIs(limit) => write!(f, "the limit is set to {limit}"),
            Self::QuantumPasses => f.write_str("a quantum passes"),
            Self::IdleTimeout => f.write_str("the idle timeout passes"),
            Self::SessionVanishes(i) => write!(f, "the session of idle connection number {i} vanishes"),
            Self::VanishedIsTold => f.write_str("the driver tells which session has vanished"),
            Self::DatabaseIsMade(w) => write!(f, "the database of workspace {w} is made"),
            Self::BeginClose(w) => write!(f, "somebody begins to close workspace {w}"),
            Self::CloseAll => f.write_str("somebody begins to close everything"),
            Self::CloserLooks(k) => write!(f, "closer {k} was told and looks whether it is done"),
            Self::CloserGoes(k) => write!(f, "closer {k} is dropped"),
            Self::Deadline(k) => write!(f, "closer {k} runs out of time and lists the leases"),
            Self::Cut(k) => write!(f, "closer {k} cuts the leases it has listed"),
            Self::CutIsConfirmed(k) => write!(f, "the leases that closer {k} has cut are gone"),
        }
    }
}
