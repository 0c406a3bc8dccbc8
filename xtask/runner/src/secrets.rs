//! Looks for the password of the test server in everything that a run wrote: the output of its cases, the records they
//! left, the server's whole directory (databases and write-ahead log, too), the report, and the arguments of processes.
//!
//! An ephemeral server's password is 128 random bits, so a hit is a leak and nothing else. Besides the plain form it is
//! found percent-encoded and in base 64, at any of the three places that a text can have there. The password itself is
//! never printed.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use memchr::memmem;
use pool_testkit::hostile::percent_encoded;

/// A shorter password is found by chance: `postgres` is in every log.
const LENGTH_MIN: usize = 12;

/// The forms of a password.
#[derive(Clone, Default)]
struct Needles(Vec<(&'static str, Vec<u8>)>);

impl fmt::Debug for Needles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Needles({})", self.0.len())
    }
}

impl Needles {
    fn of(password: &str) -> Self {
        if password.len() < LENGTH_MIN {
            return Self::default();
        }
        let mut forms = vec![
            ("plain", password.as_bytes().to_vec()),
            ("percent-encoded", percent_encoded(password).into_bytes()),
        ];
        forms.extend((0..3).map(|shift| ("base64", base64_core(password.as_bytes(), shift))));
        Self(forms)
    }

    /// Where the first of the forms is, and which.
    fn find(&self, text: &[u8]) -> Option<(usize, &'static str)> {
        self.0.iter().find_map(|(form, needle)| Some((memmem::find(text, needle)?, *form)))
    }
}

/// What a run wrote, as far as it has been searched.
#[derive(Debug, Default)]
pub struct Search {
    needles: Needles,
    searched: Searched,
    processes: BTreeSet<Vec<u8>>,
}

/// What has been searched, and what was found.
#[derive(Debug, Default)]
pub struct Searched {
    needles: Needles,
    files: usize,
    bytes: u64,
    /// A line for each place where the password is, which does not show it.
    pub hits: Vec<String>,
}

impl Search {
    /// A search for this password, if it is long enough to be told from other text.
    pub fn new(password: &str) -> Self {
        let needles = Needles::of(password);
        Self {
            needles: needles.clone(),
            searched: Searched { needles, ..Searched::default() },
            ..Self::default()
        }
    }

    /// Searches a text that lies in no file.
    pub fn text(&mut self, name: &str, text: &[u8]) {
        self.searched.look(name, text);
    }

    /// Searches every file below `directory` that the system lets us read.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn directory(&mut self, directory: &Path) -> io::Result<()> {
        self.searched.also(directory)
    }

    /// Searches the arguments of the processes that run now, where the system shows them.
    pub fn processes(&mut self) {
        let Ok(entries) = fs::read_dir("/proc") else { return };
        for line in entries.flatten().filter_map(|entry| fs::read(entry.path().join("cmdline")).ok()) {
            if self.needles.find(&line).is_some() && self.processes.insert(line.clone()) {
                let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
                self.searched.look(&format!("the arguments of {}", String::from_utf8_lossy(program)), &line);
            }
        }
    }

    /// What was found.
    pub fn into_searched(self) -> Searched {
        self.searched
    }
}

impl Searched {
    /// Searches one more directory.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn also(&mut self, directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                unless_gone(self.also(&path))?;
            } else if kind.is_file() {
                unless_gone(fs::read(&path).map(|text| {
                    self.files += 1;
                    self.look(&path.display().to_string(), &text);
                }))?;
            }
        }
        Ok(())
    }

    /// The line of the summary.
    pub fn line(&self) -> String {
        if self.needles.0.is_empty() {
            return format!(
                "not searched for the password: it has fewer than {LENGTH_MIN} characters, or there is none"
            );
        }
        let found =
            if self.hits.is_empty() { "none".to_owned() } else { format!("{} places", self.hits.len()) };
        format!("searched {:.1} MB in {} files for the password: {found}", self.megabytes(), self.files)
    }

    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn megabytes(&self) -> f64 {
        self.bytes as f64 / 1e6
    }

    fn look(&mut self, name: &str, text: &[u8]) {
        self.bytes += text.len() as u64;
        if let Some((offset, form)) = self.needles.find(text) {
            self.hits.push(format!("  {name}, at byte {offset} ({form})"));
        }
    }
}

/// A server at work removes files while they are being read.
fn unless_gone(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// The part of `secret` in base 64 that is the same whatever stands before and behind it, if `shift` bytes modulo three
/// stand before it.
fn base64_core(secret: &[u8], shift: usize) -> Vec<u8> {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let whole = &secret[(3 - shift) % 3..];
    let triples = whole.chunks_exact(3);
    let sign = |bits: u32| SIGNS[(bits & 63) as usize];
    triples
        .flat_map(|triple| {
            let bits = u32::from(triple[0]) << 16 | u32::from(triple[1]) << 8 | u32::from(triple[2]);
            [sign(bits >> 18), sign(bits >> 12), sign(bits >> 6), sign(bits)]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    use rstest::rstest;

    use super::{Search, base64_core};

    const PASSWORD: &str = "correct/horse battery";

    /// A password of its own for each test that looks at the processes of the machine: others run the same tests there.
    fn own_password() -> String {
        format!("{PASSWORD} {:032x}", fastrand::u128(..))
    }

    #[rstest]
    #[case::plain("url=postgres://u:correct/horse battery@h/d", "plain")]
    #[case::encoded("postgres://u:correct%2Fhorse%20battery@h/d", "percent-encoded")]
    // base64 of "correct/horse battery", "u:correct/horse battery" and "me:correct/horse battery".
    #[case::base64("Y29ycmVjdC9ob3JzZSBiYXR0ZXJ5", "base64")]
    #[case::base64_behind_two("dTpjb3JyZWN0L2hvcnNlIGJhdHRlcnk=", "base64")]
    #[case::base64_behind_three("bWU6Y29ycmVjdC9ob3JzZSBiYXR0ZXJ5", "base64")]
    fn it_bites(#[case] text: &str, #[case] form: &str) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("inner")).unwrap();
        std::fs::write(dir.path().join("inner/log"), format!("before {text} behind")).unwrap();
        let mut search = Search::new(PASSWORD);
        search.directory(dir.path()).unwrap();
        let searched = search.into_searched();
        let [hit] = searched.hits.as_slice() else { panic!("{searched:?}") };
        assert!(hit.contains("inner/log, at byte ") && hit.contains(form), "{hit}");
        assert!(!format!("{hit} {searched:?}").contains("horse"), "the password is not shown");
    }

    #[test]
    fn what_is_clean_is_counted() {
        let mut search = Search::new(&own_password());
        search.text("the output of a case", b"correct horse battery");
        search.processes();
        let searched = search.into_searched();
        assert!(
            searched.hits.is_empty() && searched.line().ends_with("for the password: none"),
            "{searched:?}"
        );
    }

    #[test]
    fn a_password_in_the_arguments_of_a_process_is_found() {
        const WAITS: &str = "echo ready; read _";
        let password = own_password();
        let mut child = Command::new("sh")
            .args(["-c", WAITS, "sh", &password])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The arguments of a process can be read only some time after `spawn` has come back: it says when it runs.
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let mut search = Search::new(&password);
        search.processes();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(said, "ready\n");
        if std::path::Path::new("/proc/self/cmdline").exists() {
            assert_eq!(search.into_searched().hits, ["  the arguments of sh, at byte 28 (plain)"]);
        }
    }

    #[test]
    fn a_short_password_is_not_searched_for_and_that_is_said() {
        let mut search = Search::new("postgres");
        search.text("the output of a case", b"postgres");
        let searched = search.into_searched();
        assert!(searched.hits.is_empty() && searched.line().starts_with("not searched"));
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        assert_eq!(base64_core(b"foobar", 0), b"Zm9vYmFy");
    }
}
