//! What is answered to whom.

use super::find;
use ddpm_ip::report::{Frame, Links, Run, content, table, title};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

const LIVE: &str = include_str!("live.js");

/// How long an answer is good, whoever asks for it.
const FRESH: Duration = Duration::from_secs(1);

/// Runs that are shown together if nobody chooses; of more the newest.
const TOGETHER: usize = 12;

/// An answer to a request.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Its media type.
    pub(super) kind: &'static str,
    pub(super) body: Vec<u8>,
    /// What tells it from other states of the same page.
    pub(super) tag: Option<String>,
}

impl Answer {
    fn new(kind: &'static str, body: Vec<u8>) -> Self {
        Self { status: 200, kind, tag: Some(tag(&body)), body }
    }

    pub(super) fn refused(status: u16, text: &str) -> Self {
        Self { status, kind: "text/plain; charset=utf-8", body: text.into(), tag: None }
    }
}

/// What tells a body from others, as an `ETag`.
fn tag(body: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

/// Runs, and who may see them.
pub(crate) struct Site {
    places: Vec<PathBuf>,
    /// Whether only this machine is answered: then a page of elsewhere that names another host is refused.
    only_here: bool,
    /// Runs as they were last read, with what told that they had not changed.
    read: Mutex<HashMap<PathBuf, (Stamp, Arc<Run>)>>,
    /// Answers that are still fresh.
    fresh: Mutex<HashMap<String, (Instant, Answer)>>,
}

/// When and how large the files of a run are.
type Stamp = Vec<(PathBuf, u64, Option<SystemTime>)>;

impl Site {
    /// A site about the runs in some places.
    pub(crate) fn new(places: Vec<PathBuf>, only_here: bool) -> Self {
        Self { places, only_here, read: Mutex::default(), fresh: Mutex::default() }
    }

    /// How many runs there are now.
    pub(crate) fn count(&self) -> usize {
        find::runs(&self.places).len()
    }

    /// What is answered to a request. A run is known by a number of its own, so that no path comes from outside.
    pub(super) fn answer(&self, host: Option<&str>, path: &str, query: &str) -> Answer {
        if self.only_here && !host.is_some_and(is_here) {
            return Answer::refused(
                403,
                "this page is for this machine: open it as http://localhost or http://127.0.0.1",
            );
        }
        let key = format!("{path}?{query}");
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        fresh.retain(|_, (since, _)| since.elapsed() < FRESH);
        if let Some((_, answer)) = fresh.get(&key) {
            return answer.clone();
        }
        let answer = self.make(path, query);
        fresh.insert(key, (Instant::now(), answer.clone()));
        answer
    }

    fn make(&self, path: &str, query: &str) -> Answer {
        const HTML: &str = "text/html; charset=utf-8";
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let paths = find::runs(&self.places);
        let known = |id: &str| paths.iter().find(|path| number(path) == id);
        let missing = || Answer::refused(404, "there is no such page");
        match parts[..] {
            [""] => {
                let runs = self.runs(&shown(&paths, query));
                Answer::new(HTML, self.page(&paths, &runs, query).into_bytes())
            }
            ["content"] => {
                let runs = self.runs(&shown(&paths, query));
                Answer::new(
                    HTML,
                    content(&runs.iter().map(|run| &**run).collect::<Vec<_>>(), &Here).into_string().into_bytes(),
                )
            }
            ["log", id] => {
                let Some(run) = known(id).and_then(|path| self.run(path)) else { return missing() };
                Answer::new("text/csv; charset=utf-8", table(&run).into_bytes())
            }
            ["grid", id, step] => {
                let step = step.parse::<u64>().ok();
                let run = known(id).and_then(|path| self.run(path));
                let grid = run.zip(step).and_then(|(run, step)| run.grids.iter().find(|(of, _)| *of == step).cloned());
                match grid.and_then(|(_, path)| std::fs::read(path).ok()) {
                    Some(bytes) => Answer::new("image/png", bytes),
                    None => missing(),
                }
            }
            _ => missing(),
        }
    }

    /// A whole page about some of the runs.
    fn page(&self, paths: &[PathBuf], runs: &[Arc<Run>], query: &str) -> String {
        let runs: Vec<&Run> = runs.iter().map(|run| &**run).collect();
        let chosen = query.strip_prefix("run=");
        let mut others: Vec<(String, Option<String>)> = Vec::new();
        if paths.len() > 1 {
            let all = if paths.len() > TOGETHER { format!("newest {TOGETHER}") } else { "all".into() };
            others.push((all, chosen.map(|_| "/".into())));
            others.extend(paths.iter().map(|path| {
                let id = number(path);
                let here = chosen == Some(&id);
                (self.name(path), (!here).then(|| format!("/?run={id}")))
            }));
        }
        let empty = format!(
            "no run in {} yet",
            self.places.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
        );
        let title = if runs.is_empty() { empty } else { title(&runs) };
        let content = content(&runs, &Here);
        // The script asks for what is newer than this.
        let tag = tag(content.0.as_bytes());
        let script = format!("let tag = {};\n{LIVE}", serde_json::Value::from(tag));
        Frame { title: &title, note: "Live.", others: &others, script: &script }.around(&content)
    }

    fn runs(&self, paths: &[PathBuf]) -> Vec<Arc<Run>> {
        paths.iter().filter_map(|path| self.run(path)).collect()
    }

    /// A run as it is now; none if it cannot be read.
    fn run(&self, path: &Path) -> Option<Arc<Run>> {
        let now = stamp(path);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        // A run that is silent has a state that changes with the time.
        let goes_on = |run: &Run| run.calls.last().is_some_and(|call| call.ending.is_none());
        if let Some((before, run)) = read.get(path)
            && *before == now
            && !goes_on(run)
        {
            return Some(Arc::clone(run));
        }
        let mut run = Run::read(path).ok()?;
        run.name = self.name(path);
        let run = Arc::new(run);
        read.insert(path.to_path_buf(), (now, Arc::clone(&run)));
        Some(run)
    }

    /// What a run is called: its path below the place where it was found.
    fn name(&self, path: &Path) -> String {
        let below =
            self.places.iter().filter_map(|place| path.strip_prefix(place).ok()).find(|rest| *rest != Path::new(""));
        match (below, &self.places[..]) {
            (Some(below), [_]) => below.display().to_string(),
            _ => path.display().to_string(),
        }
    }
}

/// The runs that a query asks for.
fn shown(paths: &[PathBuf], query: &str) -> Vec<PathBuf> {
    if let Some(id) = query.strip_prefix("run=") {
        return paths.iter().filter(|path| number(path) == id).cloned().collect();
    }
    let mut newest: Vec<&PathBuf> = paths.iter().collect();
    if newest.len() > TOGETHER {
        let written = |path: &&PathBuf| stamp(path).iter().filter_map(|(.., time)| *time).max();
        newest.sort_by_key(written);
        newest.drain(..newest.len() - TOGETHER);
        newest.sort();
    }
    newest.into_iter().cloned().collect()
}

/// Whether a page of this machine was asked for, whatever the port: it may come through a tunnel.
fn is_here(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// The number by which a run is known in addresses.
fn number(path: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// What changes when a run goes on.
fn stamp(run: &Path) -> Stamp {
    let files = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let entries = files(run.to_path_buf()).chain(files(run.join("samples")));
    let mut stamp: Stamp = entries
        .filter_map(|entry| entry.metadata().ok().map(|about| (entry.path(), about.len(), about.modified().ok())))
        .collect();
    stamp.sort();
    stamp
}

/// The addresses of this site.
struct Here;

impl Links for Here {
    fn grid(&self, run: &Run, step: u64) -> String {
        format!("/grid/{}/{step}", number(&run.path))
    }

    fn log(&self, run: &Run) -> String {
        format!("/log/{}", number(&run.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of runs: two that have settings and a log, one of them with a grid, and something else.
    fn place() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        for name in ["a", "b <i>"] {
            let run = place.path().join("runs").join(name);
            std::fs::create_dir_all(run.join("samples")).unwrap();
            std::fs::write(run.join("config.toml"), "").unwrap();
            std::fs::write(run.join("progress.csv"), "step,loss\n1,0.5\n2,0.25\n3,0.1").unwrap();
        }
        std::fs::write(place.path().join("runs/a/samples/step_000002.png"), b"PNG").unwrap();
        std::fs::create_dir(place.path().join("runs/other")).unwrap();
        std::fs::write(place.path().join("secret"), "secret").unwrap();
        place
    }

    fn answer(site: &Site, path: &str, query: &str) -> (u16, String) {
        let answer = site.answer(Some("localhost:8650"), path, query);
        (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
    }

    #[test]
    fn runs_are_found_by_their_settings_and_known_by_numbers() {
        let place = place();
        let runs = place.path().join("runs");
        let site = Site::new(vec![runs.clone()], true);
        assert_eq!(site.count(), 2);
        let (status, page) = answer(&site, "/", "");
        assert!(status == 200 && page.contains("2 runs") && page.contains("b &lt;i&gt;") && !page.contains("<i>"));
        let id = number(&runs.join("a"));
        assert!(page.contains(&format!("/?run={id}")) && page.contains(&format!("/grid/{id}/2")));
        let log_of_b = format!("/log/{}", number(&runs.join("b <i>")));
        let (_, one) = answer(&site, "/", &format!("run={id}"));
        assert!(page.contains(&log_of_b) && one.contains("<h1>a</h1>") && !one.contains(&log_of_b));
        assert_eq!(answer(&site, &format!("/grid/{id}/2"), ""), (200, "PNG".into()));
        // The last line has no end yet.
        assert_eq!(answer(&site, &format!("/log/{id}"), ""), (200, "step,loss\n1,0.5\n2,0.25\n".into()));
    }

    #[test]
    fn nothing_else_can_be_asked_for() {
        let place = place();
        let site = Site::new(vec![place.path().join("runs")], true);
        let id = number(&place.path().join("runs/a"));
        for path in [
            "/../secret",
            "/secret",
            "/grid/../secret",
            &format!("/grid/{id}/3"),
            &format!("/grid/{id}/../../secret"),
            &format!("/grid/{id}/..%2f..%2fsecret"),
            &format!("/log/{}", number(place.path())),
            "/content/x",
        ] {
            assert_eq!(answer(&site, path, "").0, 404, "{path}");
        }
        assert!(answer(&site, "/", "run=../..").1.contains("no run in"));
    }

    #[test]
    fn pages_of_elsewhere_cannot_read_what_is_for_this_machine() {
        let site = Site::new(Vec::new(), true);
        let status = |host: Option<&str>| site.answer(host, "/content", "").status;
        for host in ["localhost", "LOCALHOST:1", "127.0.0.1:8650", "127.1.2.3", "[::1]:80", "[::1]"] {
            assert_eq!(status(Some(host)), 200, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "192.168.0.1:8650", "[2001:db8::1]", ""] {
            assert_eq!(status(Some(host)), 403, "{host}");
        }
        assert_eq!(status(None), 403);
        assert_eq!(Site::new(Vec::new(), false).answer(Some("evil.example"), "/content", "").status, 200);
    }

    #[test]
    fn a_run_that_goes_on_is_read_again() {
        let place = place();
        let site = Site::new(vec![place.path().join("runs/a")], true);
        let run = place.path().join("runs/a");
        let last = || site.run(&run).and_then(|run| run.last("loss"));
        assert_eq!(last(), Some(0.25));
        std::fs::write(run.join("progress.csv"), "step,loss\n1,0.5\n2,0.25\n3,0.125\n").unwrap();
        assert_eq!(last(), Some(0.125));
    }
}
