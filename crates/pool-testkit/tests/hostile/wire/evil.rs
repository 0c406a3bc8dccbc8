//! What a broken or malicious server says: complete conversations that are cut, changed or invented.

/// What follows the bytes.
#[derive(Clone, Copy)]
pub enum Then {
    /// The end of the connection.
    Close,
    /// Nothing, for ever.
    Hold,
    /// More, for ever: the chunk of each number.
    Go(fn(u64) -> Vec<u8>),
}

/// What a server says when it has read the startup message, whatever it is asked afterwards.
#[derive(Clone)]
pub struct Evil {
    pub name: String,
    pub bytes: Vec<u8>,
    pub then: Then,
}

const KINDS: &[u8] = b"123CdcGHDEIAKNRSTZnst";

/// A message of the protocol, with the length that it should have.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    headed(kind, u32::try_from(body.len() + 4).unwrap(), body)
}

/// A message with the length that it claims to have.
fn headed(kind: u8, length: u32, body: &[u8]) -> Vec<u8> {
    [&[kind], length.to_be_bytes().as_slice(), body].concat()
}

/// How a session begins that needs no password.
pub fn greeting() -> Vec<u8> {
    let ready = [message(b'K', &[0, 15, 66, 63, 1, 2, 3, 4]), message(b'Z', b"I")].concat();
    [message(b'R', &[0; 4]), message(b'S', b"server_version\x0015.3\0"), ready].concat()
}

/// The answer to the question who we are: a process id and when it began.
fn answer(started: &[u8]) -> Vec<u8> {
    let field = |name: &[u8], oid: u8| {
        [name, &[0; 7], &[0, 0, 0, oid], &[255, 255, 255, 255, 255, 255, 0, 0]].concat()
    };
    let fields = [&[0, 2][..], &field(b"pid", 23), &field(b"started", 25)].concat();
    let length = u32::try_from(started.len()).unwrap().to_be_bytes();
    let row = [b"\0\x02\0\0\0\x06999999", &length[..], started].concat();
    [message(b'T', &fields), message(b'D', &row), message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat()
}

/// All of a good conversation.
pub fn conversation() -> Vec<u8> {
    [greeting(), answer(b"never")].concat()
}

/// Sessions that began at no time, and spoil the question whether they are gone if they are asked about as they are.
pub fn identities() -> Vec<Evil> {
    let began = [&b"ne\0er"[..], b"\0", b"", b"\x1b[2J", &[b'9'; 10_000]];
    began.map(|began| evil(format!("began {began:?}"), [greeting(), answer(began)].concat())).into()
}

fn evil(name: impl Into<String>, bytes: Vec<u8>) -> Evil {
    Evil { name: name.into(), bytes, then: Then::Close }
}

/// The good conversation, cut before each of its bytes.
pub fn truncated() -> Vec<Evil> {
    let whole = conversation();
    (0..whole.len()).map(|n| evil(format!("cut at {n}"), whole[..n].to_vec())).collect()
}

/// Every kind of message with a length below what it needs, in place of the greeting and of the answer.
pub fn too_short() -> Vec<Evil> {
    let lengths = KINDS.iter().flat_map(|kind| (0..10).map(move |length| (*kind, length)));
    let both = lengths.flat_map(|(kind, length)| {
        let body = vec![0; usize::try_from(length).unwrap().saturating_sub(4)];
        let bytes = headed(kind, length, &body);
        let name = format!("{:?} of {length} bytes", char::from(kind));
        [
            evil(format!("{name} as greeting"), bytes.clone()),
            evil(format!("{name} as answer"), [greeting(), bytes].concat()),
        ]
    });
    both.collect()
}

/// Every kind of message with a body of noise.
pub fn noise(rng: &mut fastrand::Rng) -> Vec<Evil> {
    let mut all = Vec::new();
    for kind in KINDS {
        for round in 0..4 {
            let mut body = vec![0; rng.usize(0..200)];
            rng.fill(&mut body);
            let name = format!("{:?} with noise {round}", char::from(*kind));
            all.push(evil(format!("{name} as greeting"), message(*kind, &body)));
            all.push(evil(format!("{name} as answer"), [greeting(), message(*kind, &body)].concat()));
        }
    }
    for round in 0..50 {
        let mut bytes = vec![0; rng.usize(1..4096)];
        rng.fill(&mut bytes);
        all.push(evil(format!("garbage {round}"), bytes));
    }
    all
}

/// The good conversation with a few bytes changed.
pub fn mutated(rng: &mut fastrand::Rng) -> Vec<Evil> {
    let mutate = |round| {
        let mut bytes = conversation();
        for _ in 0..rng.usize(1..5) {
            let at = rng.usize(0..bytes.len());
            bytes[at] = *rng.choice(&[0, 1, 0x7f, 0x80, 0xff, rng.clone().u8(..)]).unwrap();
        }
        evil(format!("mutation {round}"), bytes)
    };
    (0..250).map(mutate).collect()
}

/// Authentication that is broken, or without an end.
pub fn authentication() -> Vec<Evil> {
    let request = |method: u8, body: &[u8]| message(b'R', &[&[0, 0, 0, method], body].concat());
    let scram = request(10, b"SCRAM-SHA-256\0\0");
    let continued: [&[u8]; 9] = [
        b"",
        b",",
        b"r",
        b"r=,s=,i=",
        b"r=\xff",
        b"r=x,s=!!!,i=1",
        b"r=x,s=AAAA,i=0",
        b"r=x,s=AAAA,i=-1",
        b"r=x,s=AAAA,i=1",
    ];
    let steps = continued
        .iter()
        .map(|body| evil(format!("SCRAM {body:?}"), [&scram[..], &request(11, body)].concat()));
    let finals = [&b""[..], b"v", b"v=AAAA", b"e=no"].map(|body| {
        let bytes = [&scram[..], &request(11, b"r=x,s=AAAA,i=1"), &request(12, body)].concat();
        evil(format!("SCRAM's end {body:?}"), bytes)
    });
    let others = [
        evil("SASL without a mechanism", request(10, b"\0")),
        evil("SASL unterminated", request(10, b"SCRAM-SHA-256")),
        evil("SASL of another kind", request(10, b"EVIL\0\0")),
        evil("MD5 without salt", request(5, b"")),
        evil("an unknown method", request(77, b"")),
        Evil {
            then: Then::Hold,
            ..evil(
                "SCRAM of four thousand million rounds",
                [&scram[..], &request(11, b"r=x,s=AAAA,i=4294967295")].concat(),
            )
        },
    ];
    steps.chain(finals).chain(others).collect()
}

/// Errors and notices that are none.
pub fn errors() -> Vec<Evil> {
    let bodies: [&[u8]; 7] = [
        b"\0",
        b"S",
        b"SERROR",
        b"SODD\0VODD\0\0",
        b"SERROR\0C\xff\xff\0M\xfe\0\0",
        b"M\0\0",
        b"SFATAL\0VFATAL\0C3D000\0M\x1b[2J\0",
    ];
    let of = |kind: u8| {
        bodies.iter().map(move |body| evil(format!("{:?} {body:?}", char::from(kind)), message(kind, body)))
    };
    of(b'E').chain(of(b'N')).collect()
}

/// Servers that do not come to an end; each would take all memory if all of it were kept.
pub fn endless() -> Vec<Evil> {
    let go = |name: &str, bytes: Vec<u8>, more: fn(u64) -> Vec<u8>| Evil {
        name: name.into(),
        bytes,
        then: Then::Go(more),
    };
    vec![
        go("notices", Vec::new(), |_| message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mon and on\0\0").repeat(100)),
        go("one parameter", Vec::new(), |_| message(b'S', b"TimeZone\0UTC\0").repeat(100)),
        go("many parameters", Vec::new(), |n| {
            message(b'S', format!("name {n}\0{}\0", "x".repeat(1000)).as_bytes())
        }),
        go("authentication", Vec::new(), |_| message(b'R', &[0, 0, 0, 5, 1, 2, 3, 4]).repeat(100)),
        go("key data", Vec::new(), |_| message(b'K', &[0; 8]).repeat(100)),
        go("rows", greeting(), |_| message(b'D', &[0, 0]).repeat(1000)),
        go("notices once it is open", conversation(), |_| {
            message(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mon and on\0\0").repeat(100)
        }),
        go("a message of 2 GB", headed(b'S', 0x7fff_ffff, b""), |_| vec![b'x'; 16384]),
        go("an answer of 4 GB", [greeting(), headed(b'D', 0xffff_ffff, b"")].concat(), |_| vec![0; 16384]),
    ]
}
