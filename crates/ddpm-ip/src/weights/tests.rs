use super::*;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// More than is read at once.
fn content() -> Vec<u8> {
    (0..300_000_u32).map(|i| (i.wrapping_mul(i) >> 5) as u8).collect()
}

fn name() -> String {
    format!("weights-{}.pth", &sha256(&content()[..]).unwrap()[..8])
}

/// What the server of a test does with a connection.
enum Does {
    /// Sends everything.
    Whole,
    /// Sends everything or what is asked for.
    Ranged,
    /// Announces everything, sends so many bytes and hangs up.
    Cut(usize),
    /// Sends this.
    Says(String),
}

impl Does {
    fn says(status: &str, headers: &str, body: &str) -> Self {
        Self::Says(format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()))
    }

    fn send(&self, head: &str, stream: &mut TcpStream) -> io::Result<()> {
        let content = content();
        let start = head.lines().find_map(|l| {
            l.to_ascii_lowercase().strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
        });
        let (status, start, end) = match (self, start) {
            (Self::Says(text), _) => return stream.write_all(text.as_bytes()),
            (Self::Ranged, Some(start)) => ("206 Partial Content", start, content.len()),
            (Self::Cut(bytes), _) => ("200 OK", 0, *bytes),
            _ => ("200 OK", 0, content.len()),
        };
        let mut text = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", content.len() - start);
        if status.starts_with("206") {
            write!(text, "Content-Range: bytes {start}-{}/{}\r\n", content.len() - 1, content.len()).unwrap();
        }
        stream.write_all(text.as_bytes())?;
        stream.write_all(b"\r\n")?;
        stream.write_all(&content[start..end])
    }
}

/// A server for as many connections as there are things to do.
struct Server {
    url: String,
    /// The requests' heads.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(does: impl IntoIterator<Item = Does>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/{}", listener.local_addr().unwrap(), name());
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (does, kept): (Vec<_>, _) = (does.into_iter().collect(), heads.clone());
        std::thread::spawn(move || {
            for does in does {
                let (mut stream, _) = listener.accept().unwrap();
                let lines = BufReader::new(&stream).lines().map(Result::unwrap).take_while(|l| !l.is_empty());
                let head = lines.collect::<Vec<_>>().join("\n");
                kept.lock().unwrap().push(head.clone());
                // A client that has heard enough hangs up.
                let _ = does.send(&head, &mut stream);
            }
        });
        Self { url, heads }
    }

    /// The ranges asked for so far.
    fn ranges(&self) -> Vec<Option<String>> {
        let range = |head: &String| {
            head.lines().find_map(|l| Some(l.to_ascii_lowercase().strip_prefix("range: ")?.to_string()))
        };
        self.heads.lock().unwrap().iter().map(range).collect()
    }
}

struct Folder {
    dir: tempfile::TempDir,
    to: PathBuf,
    part: PathBuf,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join(name());
        let part = dir.path().join(name() + ".part");
        Self { dir, to, part }
    }

    /// With so many bytes of an earlier call.
    fn with_part(bytes: usize) -> Self {
        let folder = Self::new();
        fs::write(&folder.part, &content()[..bytes]).unwrap();
        folder
    }

    fn fetch(&self, server: &Server) -> Result<Fetched, Error> {
        self.fetch_from(&server.url)
    }

    fn fetch_from(&self, url: &str) -> Result<Fetched, Error> {
        fetch(url, &self.to, &mut |_, _| {}, &AtomicBool::new(false))
    }

    fn fails(&self, server: &Server) -> String {
        self.fetch(server).unwrap_err().to_string()
    }

    fn names(&self) -> Vec<String> {
        fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn assert_whole(&self) {
        assert_eq!(self.names(), [name()]);
        assert!(fs::read(&self.to).unwrap() == content());
    }
}

#[test]
fn a_file_is_fetched_once() {
    let folder = Folder::new();
    let server = Server::new([Does::Whole]);
    let to = folder.dir.path().join("a/cache").join(name());
    let (total, mut heard) = (content().len() as u64, Vec::new());
    let mut progress = |done, total| heard.push((done, total));
    let stop = AtomicBool::new(false);
    assert_eq!(fetch(&server.url, &to, &mut progress, &stop).unwrap(), Fetched::Finished);
    assert_eq!(fetch(&server.url, &to, &mut progress, &stop).unwrap(), Fetched::AlreadyThere);
    assert!(fs::read(&to).unwrap() == content());
    assert_eq!(heard.first(), Some(&(0, Some(total))));
    assert_eq!(heard.last(), Some(&(total, Some(total))));
    assert!(heard.is_sorted());
    assert_eq!(server.ranges(), [None]);
}

#[test]
fn a_broken_connection_is_continued() {
    let folder = Folder::new();
    let server = Server::new([Does::Cut(100_000), Does::Ranged]);
    let message = folder.fails(&server);
    assert!(message.contains("after 100000 of 300000 bytes") && message.contains("run this again"), "{message}");
    assert_eq!(fs::read(&folder.part).unwrap(), &content()[..100_000]);
    assert_eq!(folder.fetch(&server).unwrap(), Fetched::Finished);
    assert_eq!(server.ranges(), [None, Some("bytes=100000-".into())]);
    folder.assert_whole();
}

#[test]
fn an_interrupted_call_is_continued() {
    let folder = Folder::new();
    let server = Server::new([Does::Whole, Does::Ranged]);
    let stop = AtomicBool::new(false);
    let mut progress = |done, _| stop.store(done > 0, Ordering::Relaxed);
    assert_eq!(fetch(&server.url, &folder.to, &mut progress, &stop).unwrap(), Fetched::Interrupted);
    assert_eq!(folder.names(), [name() + ".part"]);
    let kept = fs::metadata(&folder.part).unwrap().len();
    assert!(kept > 0 && kept < content().len() as u64);
    assert_eq!(folder.fetch(&server).unwrap(), Fetched::Finished);
    assert_eq!(server.ranges(), [None, Some(format!("bytes={kept}-"))]);
    folder.assert_whole();
}

#[test]
fn a_server_without_ranges_starts_over() {
    let folder = Folder::with_part(1000);
    let server = Server::new([Does::Whole]);
    assert_eq!(folder.fetch(&server).unwrap(), Fetched::Finished);
    assert_eq!(server.ranges(), [Some("bytes=1000-".into())]);
    folder.assert_whole();
}

#[test]
fn another_range_than_asked_for_starts_over() {
    for range in ["Content-Range: bytes 999-1001/300000\r\n", "Content-Range: nonsense\r\n", ""] {
        let folder = Folder::with_part(1000);
        let server = Server::new([Does::says("206 Partial Content", range, "xyz"), Does::Whole]);
        assert_eq!(folder.fetch(&server).unwrap(), Fetched::Finished);
        assert_eq!(server.ranges(), [Some("bytes=1000-".into()), None]);
        folder.assert_whole();
    }
}

#[test]
fn a_part_that_is_all_needs_no_more() {
    let folder = Folder::with_part(300_000);
    let refusal = || Does::says("416 Range Not Satisfiable", "Content-Range: bytes */300000\r\n", "no");
    assert_eq!(folder.fetch(&Server::new([refusal()])).unwrap(), Fetched::Finished);
    folder.assert_whole();

    let folder = Folder::new();
    fs::write(&folder.part, vec![0; 300_001]).unwrap();
    let server = Server::new([refusal(), Does::Whole]);
    assert_eq!(folder.fetch(&server).unwrap(), Fetched::Finished);
    assert_eq!(server.ranges(), [Some("bytes=300001-".into()), None]);
    folder.assert_whole();
}

#[test]
fn a_range_that_ends_early_is_kept() {
    let folder = Folder::with_part(1000);
    let range = "Content-Range: bytes 1000-1000/300000\r\n";
    let server = Server::new([Does::says("206 Partial Content", range, "x")]);
    let message = folder.fails(&server);
    assert!(message.contains("after 1001 of 300000 bytes (it ends early)"), "{message}");
    assert!(folder.part.exists() && !folder.to.exists());
}

#[test]
fn nothing_is_kept_that_does_not_fit_the_hash() {
    for does in [Does::says("200 OK", "", "another file"), Does::Says("HTTP/1.1 200 OK\r\n\r\nof any length".into())] {
        let folder = Folder::new();
        let message = folder.fails(&Server::new([does]));
        assert!(message.contains("not with") && message.contains("try again"), "{message}");
        assert!(folder.names().is_empty());
    }
    let folder = Folder::new();
    fs::write(&folder.part, [0; 1000]).unwrap();
    folder.fails(&Server::new([Does::Ranged]));
    assert!(folder.names().is_empty());
}

#[test]
fn refusals_are_told() {
    let folder = Folder::new();
    let message = folder.fails(&Server::new([Does::says("404 Not Found", "", "no")]));
    assert!(message.starts_with("cannot fetch http://127.0.0.1:"), "{message}");
    assert!(message.contains("404 Not Found") && message.contains(folder.to.to_str().unwrap()), "{message}");
    assert!(folder.names().is_empty());

    let folder = Folder::with_part(1000);
    let message = folder.fails(&Server::new([Does::says("503 Service Unavailable", "", "")]));
    assert!(message.contains("503 Service Unavailable"), "{message}");
    assert_eq!(fs::metadata(&folder.part).unwrap().len(), 1000);

    let unasked = Does::says("206 Partial Content", "Content-Range: bytes 0-1/300000\r\n", "xy");
    assert!(Folder::new().fails(&Server::new([unasked])).contains("206 Partial Content"));
}

#[test]
fn redirects_are_followed() {
    let folder = Folder::with_part(1000);
    let target = Server::new([Does::Ranged]);
    let server = Server::new([Does::says("302 Found", &format!("Location: {}\r\n", target.url), "")]);
    assert_eq!(folder.fetch(&server).unwrap(), Fetched::Finished);
    assert_eq!(target.ranges(), [Some("bytes=1000-".into())]);
    folder.assert_whole();
}

#[test]
fn an_unreachable_server_is_named() {
    let folder = Folder::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let message = folder.fetch_from(&format!("http://{closed}/x")).unwrap_err().to_string();
    assert!(message.contains("nothing comes from 127.0.0.1: "), "{message}");
    assert!(message.contains("another machine") && message.contains(folder.to.to_str().unwrap()), "{message}");
    assert!(folder.names().is_empty());
}

#[test]
fn only_https_leaves_this_machine() {
    let folder = Folder::new();
    let message = folder.fetch_from("http://host.invalid/x").unwrap_err().to_string();
    assert!(message.contains("is not https"), "{message}");
    for url in ["", "no address", "/a/file", "https://"] {
        let message = folder.fetch_from(url).unwrap_err().to_string();
        assert!(message.contains("not the address"), "{message}");
    }
    assert!(folder.names().is_empty());
}

#[test]
fn long_files_are_refused() {
    let max_bytes = content().len() as u64 - 1;
    for does in [Does::Whole, Does::Says(format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(content().len())))] {
        let folder = Folder::new();
        let server = Server::new([does]);
        let download = Download { url: &server.url, to: &folder.to, max_bytes };
        let message = download.run(&mut |_, _| {}, &AtomicBool::new(false)).unwrap_err().to_string();
        assert!(message.contains("more than 299999 bytes"), "{message}");
        assert!(folder.names().is_empty());
    }
}

#[test]
fn a_wrong_file_is_named_and_left() {
    let folder = Folder::new();
    fs::write(&folder.to, "another file").unwrap();
    let message = folder.fetch_from("https://host.invalid/x").unwrap_err().to_string();
    assert!(message.starts_with(folder.to.to_str().unwrap()) && message.contains("download it again"), "{message}");
    assert_eq!(fs::read(&folder.to).unwrap(), b"another file");
}

#[test]
fn a_name_without_hash_is_not_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let fetched =
        fetch("https://host.invalid/x", &folder.path().join("x.pth"), &mut |_, _| {}, &AtomicBool::new(false));
    assert!(fetched.unwrap_err().to_string().contains("no hash"));
}

#[test]
fn two_calls_do_not_write_one_file() {
    let folder = Folder::with_part(1000);
    let other = File::open(&folder.part).unwrap();
    other.lock().unwrap();
    let message = folder.fetch_from("https://host.invalid/x").unwrap_err().to_string();
    assert!(message.contains("another command"), "{message}");
    assert_eq!(fs::metadata(&folder.part).unwrap().len(), 1000);
}

#[test]
fn hashes_are_found_in_names() {
    let found = |name: &str| hash_in_name(Path::new(name)).map(str::to_string);
    assert_eq!(found("/a-01234567.b/resnet18-5c106cde.pth").as_deref(), Some("5c106cde"));
    assert_eq!(found("resnet18-5c106cde.pth.tar").as_deref(), Some("5c106cde"));
    assert_eq!(found("resnet18-5c106cdeff").as_deref(), Some("5c106cdeff"));
    assert_eq!(found(INCEPTION.name).as_deref(), Some("6726825d"));
    assert!(INCEPTION.url.ends_with(INCEPTION.name) && INCEPTION.bytes < MAX_BYTES);
    for name in ["", "5c106cde.pth", "a-5c106cd.pth", "a-5c106cdg.pth", "a-5C106CDE.pth", "a-5c106cde-b.pth", "a-é.pth"]
    {
        assert_eq!(found(name), None, "{name}");
    }
    assert_eq!(found(&format!("a-{}.pth", "0".repeat(65))), None);
}

#[test]
fn hashes_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str| {
        let path = folder.path().join(name);
        fs::write(&path, "abc").unwrap();
        check_hash(&path)
    };
    // FIPS 180-2, appendix B.1.
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(check("a.pth").unwrap(), abc);
    assert_eq!(check("a-ba7816bf.pth").unwrap(), abc);
    assert_eq!(check(&format!("a-{abc}.pth")).unwrap(), abc);
    let message = check("a-ba7816bf8e.pth").unwrap_err().to_string();
    assert!(message.contains("begins with ba7816bf8f, and its name promises ba7816bf8e"), "{message}");
    assert!(check_hash(&folder.path().join("none")).unwrap_err().to_string().starts_with("cannot read"));
}

#[test]
fn content_ranges_are_read() {
    assert_eq!(content_range("bytes 5-9/10"), (Some(5), Some(10)));
    assert_eq!(content_range("bytes 5-9/*"), (Some(5), None));
    assert_eq!(content_range("bytes */10"), (None, Some(10)));
    for nonsense in ["", "bytes", "bytes 5-9", "lines x-9/y", "bytes -/-"] {
        assert_eq!(content_range(nonsense), (None, None), "{nonsense}");
    }
}
