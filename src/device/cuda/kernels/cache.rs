//! Compiled kernels on disk, so that NVRTC runs once for a GPU and a version of the plugin, not at every start.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;

/// Format of the files; part of every key.
const FORMAT: &str = "streamdiffusion kernels 1";

/// A folder of compiled kernels that only its owner may write to: what is in it is run.
pub struct Cache(PathBuf);

impl Cache {
    /// The user's, below `XDG_CACHE_HOME` or `~/.cache`; `None` where there is no home.
    pub fn of_user() -> Option<Self> {
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
        };
        let base =
            absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|h| h.join(".cache")));
        Some(Self(
            base?.join("gst-plugin-streamdiffusion").join("kernels"),
        ))
    }

    /// What is stored under `key`, if it is whole and nobody else could have written it.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        if !private(&fs::metadata(&self.0).ok()?) {
            return None;
        }
        let mut options = fs::OpenOptions::new();
        options.read(true);
        // A link could lead to a file of somebody else.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW);
        let mut opened = options.open(self.path(key)).ok()?;
        // Of the open file, not of the path, which may be another by now.
        if !private(&opened.metadata().ok()?) {
            return None;
        }
        let mut file = Vec::new();
        opened.read_to_end(&mut file).ok()?;
        let end = file.iter().position(|byte| *byte == b'\n')?;
        let (head, body) = (&file[..end], &file[end + 1..]);
        (head == header(key, body).as_bytes()).then(|| body.to_vec())
    }

    /// Stores `code` under `key`. Readers see the old file or the new one, never a part.
    pub fn put(&self, key: &str, code: &[u8]) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&self.0)?;
        if !private(&fs::metadata(&self.0)?) {
            return Err(io::Error::other("others may write to the folder"));
        }
        let path = self.path(key);
        let thread = format!("{:?}", std::thread::current().id());
        let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
        let new = path.with_extension(format!("{}-{thread}.new", std::process::id()));
        let mut options = fs::OpenOptions::new();
        // What a process with this number left behind when it was killed.
        let _ = fs::remove_file(&new);
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options.open(&new).and_then(|mut file| {
            writeln!(file, "{}", header(key, code))?;
            file.write_all(code)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        });
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }

    fn path(&self, key: &str) -> PathBuf {
        self.0.join(format!("{:016x}.bin", hash(key.as_bytes())))
    }
}

/// First line of a file: all that its content follows from, and a checksum of the rest.
fn header(key: &str, body: &[u8]) -> String {
    format!("{FORMAT}, {key}, {} bytes {:016x}", body.len(), hash(body))
}

/// FNV-1a, 64 bits. Against damage and mistakes, not against attacks: [`private`] is for those.
pub const fn hash(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
}

/// Whether what this is of is the user's own, and nobody else may write to it.
#[cfg(unix)]
fn private(data: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    // SAFETY: has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
    data.uid() == user && data.mode() & 0o022 == 0
}

/// Profiles of users are theirs alone where there are no modes.
#[cfg(not(unix))]
fn private(_: &fs::Metadata) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_comes_back_whole_or_not_at_all() {
        let folder = std::env::temp_dir().join(format!("kernels-{}", std::process::id()));
        let cache = Cache(folder.join("a").join("b"));
        assert_eq!(cache.get("sm_90"), None);
        cache.put("sm_90", b"code\nof a GPU").unwrap();
        assert_eq!(cache.get("sm_90").unwrap(), b"code\nof a GPU");
        assert_eq!(cache.get("sm_89"), None);
        cache.put("sm_90", b"newer").unwrap();
        assert_eq!(cache.get("sm_90").unwrap(), b"newer");
        let path = cache.path("sm_90");
        assert_eq!(fs::read_dir(&cache.0).unwrap().count(), 1);

        // Another key's file under this one's name, a damaged one, one that others may write to.
        cache.put("other", b"newer").unwrap();
        let good = fs::read(&path).unwrap();
        fs::copy(cache.path("other"), &path).unwrap();
        assert_eq!(cache.get("sm_90"), None);
        for damaged in [&good[..good.len() - 1], b"", b"\n"] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(cache.get("sm_90"), None);
        }
        fs::write(&path, &good).unwrap();
        assert!(cache.get("sm_90").is_some());
        #[cfg(unix)]
        for loose in [&path, &cache.0] {
            use std::os::unix::fs::PermissionsExt as _;
            let before = fs::metadata(loose).unwrap().permissions();
            fs::set_permissions(loose, fs::Permissions::from_mode(0o777)).unwrap();
            assert_eq!(cache.get("sm_90"), None);
            assert_eq!(cache.put("new", b"code").is_err(), *loose == cache.0);
            fs::set_permissions(loose, before).unwrap();
        }
        #[cfg(unix)]
        {
            let elsewhere = cache.path("elsewhere");
            fs::rename(&path, &elsewhere).unwrap();
            std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
            assert_eq!(cache.get("sm_90"), None);
            fs::rename(&elsewhere, &path).unwrap();
        }
        assert!(cache.get("sm_90").is_some());
        fs::remove_dir_all(&folder).unwrap();
    }

    /// The published test vectors of FNV.
    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(hash(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
