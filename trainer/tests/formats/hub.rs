//! A repository of the hub, from a server on this machine.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use assert_cmd::Command;

use super::{assert_same, golden, llama, open};

/// Serves the files of a folder as `me/tiny`, until the process ends; counts requests.
fn serve(folder: PathBuf) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = answer(stream.unwrap(), &folder);
        }
    });
    (address, requests)
}

fn answer(mut stream: TcpStream, folder: &std::path::Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap()?;
    let path = request.split(' ').nth(1).unwrap().to_string();
    let mut range = (0, usize::MAX);
    for line in lines {
        let line = line?;
        if let Some(r) = line.to_lowercase().strip_prefix("range: bytes=") {
            let (from, to) = r.split_once('-').unwrap();
            range = (from.parse().unwrap(), to.parse().unwrap_or(usize::MAX));
        }
        if line.is_empty() {
            break;
        }
    }
    if path.starts_with("/api/models/me/tiny") {
        let names: Vec<_> = folder
            .read_dir()?
            .map(|e| serde_json::json!({"rfilename": e.unwrap().file_name().into_string().unwrap()}))
            .collect();
        let body = serde_json::json!({"siblings": names, "sha": "abc"}).to_string();
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
    }
    let file = path.strip_prefix("/me/tiny/resolve/main/").map(|name| folder.join(name));
    let Some(Ok(bytes)) = file.map(std::fs::read) else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    };
    let end = range.1.saturating_add(1).min(bytes.len());
    let part = &bytes[range.0..end];
    let tag = path.rsplit('/').next().unwrap();
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nConnection: close\r\nx-repo-commit: abc\r\netag: \"{tag}\"\r\n\
         Content-Range: bytes {}-{}/{}\r\nContent-Length: {}\r\n\r\n",
        range.0,
        end - 1,
        bytes.len(),
        part.len()
    )?;
    stream.write_all(part)
}

/// `import` of a repository: what it says, and its exit code.
fn import(dir: &tempfile::TempDir, repository: &str, environment: &[(&str, &str)]) -> (String, Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chronicals"));
    for name in
        ["HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "http_proxy", "HTTP_PROXY", "ALL_PROXY"]
    {
        command.env_remove(name);
    }
    command.current_dir(dir).env("HF_HOME", dir.path().join("home")).envs(environment.iter().copied());
    let output = command.args(["import", repository, "out", "--dtype", "f32"]).output().unwrap();
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
}

#[test]
fn a_repository_is_fetched_once_and_then_found_in_the_cache() {
    let dir = llama();
    std::fs::write(dir.path().join("model/README.md"), "not wanted").unwrap();
    let (address, requests) = serve(dir.path().join("model"));
    let (text, code) = import(&dir, "me/tiny", &[("HF_ENDPOINT", &address)]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("fetching me/tiny"), "{text}");
    let out = dir.path().join("out");
    assert_same(&*open(&out), &*open(&golden("llama/model.safetensors")));
    let snapshot = dir.path().join("home/hub/models--me--tiny/snapshots/abc");
    assert!(snapshot.join("config.json").exists() && !snapshot.join("README.md").exists());

    let before = requests.load(Ordering::SeqCst);
    std::fs::remove_dir_all(&out).unwrap();
    let (text, code) = import(&dir, "me/tiny", &[("HF_ENDPOINT", &address), ("HF_HUB_OFFLINE", "1")]);
    assert_eq!((code, requests.load(Ordering::SeqCst)), (Some(0), before), "{text}");
}

#[test]
fn what_cannot_be_fetched_is_told_with_another_way() {
    let dir = llama();
    let (address, _) = serve(dir.path().join("model"));
    for (repository, environment, expected) in [
        ("me/other", ("HF_ENDPOINT", address.as_str()), "404"),
        ("me/tiny", ("HF_ENDPOINT", "http://127.0.0.1:9"), "cannot be fetched"),
        ("me/tiny", ("HF_HUB_OFFLINE", "1"), "HF_HUB_OFFLINE is set"),
    ] {
        let (text, code) = import(&dir, repository, &[environment]);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(expected) && text.contains("hf download"), "{expected:?} is not in:\n{text}");
        assert!(!dir.path().join("out").exists());
    }
}
