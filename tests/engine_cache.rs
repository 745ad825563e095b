//! The cache of built engines, in all the states it can be found in. The engines are made up: nothing of TensorRT is
//! needed.
#![cfg(feature = "tensorrt")]

mod common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::time::{Duration, Instant};

use common::{Folder, copy, data, wait_until};
use gststreamdiffusion::engine::cache::{Cache, Companion, Hashes, Key, Order, Outcome};
use gststreamdiffusion::error::{Error, Result};
use gststreamdiffusion::model::ModelFolder;

const ENGINE: &[u8] = b"an engine, as far as the cache knows";

fn key() -> Key {
    Key {
        source: "00ff".repeat(16),
        inputs: vec!["sample float16 1x4x64x64".into()],
        output: "out_sample".into(),
        builder: "rtx 1.7.1.116".into(),
        ..Key::new("unet", "live")
    }
}

/// A cache in a new folder, which is its own so that permissions can be set.
fn cache() -> (Folder, Cache) {
    let folder = Folder::new();
    let cache = Cache::new(Some(&folder.path().join("engines"))).unwrap();
    (folder, cache)
}

fn order<'a>(key: &'a Key, room: u64) -> Order<'a> {
    Order {
        key,
        model: Path::new("/models/a"),
        room,
        serves: BTreeMap::from([("rows".to_owned(), (1, 8))]),
    }
}

fn build(cache: &Cache, key: &Key, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Outcome> {
    cache.build(&order(key, 1 << 10), || Ok(()), make)
}

/// A cache that holds the engine of [`key`], and where that is.
fn full() -> (Folder, Cache, PathBuf) {
    let (folder, cache) = cache();
    let outcome = build(&cache, &key(), || Ok(ENGINE.to_vec())).unwrap();
    assert!(matches!(outcome, Outcome::Built { .. }));
    let path = cache.path(&key());
    (folder, cache, path)
}

/// The names of the files in it, but for locks.
fn names(cache: &Cache) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(cache.folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".lock"))
        .collect();
    names.sort();
    names
}

#[track_caller]
fn refuses(cache: &Cache, key: &Key, parts: &[&str]) {
    let text = cache.load(key).unwrap_err().to_string();
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    // A second look says the same, and building anew is the way out.
    assert!(cache.holds(key).map_or(true, |holds| !holds));
}

/// Building mends what is refused, says why it did, and leaves an engine that is used.
#[track_caller]
fn mends(cache: &Cache, why_part: &str) {
    match build(cache, &key(), || Ok(ENGINE.to_vec())).unwrap() {
        Outcome::Built { why, .. } => assert!(why.contains(why_part), "{why}"),
        outcome => panic!("{outcome:?}"),
    }
    assert_eq!(cache.load(&key()).unwrap().bytes, ENGINE);
}

#[test]
fn an_engine_is_built_once_and_read_as_it_was() {
    let (_folder, cache) = cache();
    assert!(cache.entries().unwrap().is_empty());
    let missing = cache.load(&key()).unwrap_err();
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    assert!(
        missing
            .to_string()
            .contains("no engine for it has been built")
    );

    let made = Cell::new(0);
    let make = || {
        made.set(made.get() + 1);
        Ok(ENGINE.to_vec())
    };
    let first = build(&cache, &key(), make).unwrap();
    let second = build(&cache, &key(), make).unwrap();
    assert_eq!(made.get(), 1);
    let (Outcome::Built { record, .. }, Outcome::Present(there)) = (first, second) else {
        panic!("built twice, or not at all");
    };
    assert_eq!(record, there);
    assert_eq!(record.size, ENGINE.len() as u64);
    assert_eq!(record.serves, order(&key(), 0).serves);
    // By sha256sum.
    assert_eq!(
        record.sha256,
        "98ef3e00429a63a61b344690a063ae6a85f650dcf2dd210c61db3092cfde09ba"
    );

    let cached = cache.load(&key()).unwrap();
    assert_eq!((cached.bytes.as_slice(), &cached.record), (ENGINE, &record));
    assert_eq!(cached.path, cache.path(&key()));
    let entries = cache.entries().unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].record.as_ref().unwrap(), &record);
    assert_eq!(cache.verify(&entries[0].path).unwrap(), record);
    // For the user alone.
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(cache.folder()), 0o700);
    for name in names(&cache) {
        assert_eq!(mode(&cache.folder().join(&name)), 0o600, "{name}");
    }
}

#[test]
fn another_key_is_another_engine_and_the_difference_is_told() {
    let (_folder, cache, _) = full();
    let other = Key {
        builder: "rtx 1.8.0.1".into(),
        ..key()
    };
    refuses(&cache, &other, &["rtx 1.7.1.116, now rtx 1.8.0.1"]);
    let changed = Key {
        source: "11".repeat(32),
        ..key()
    };
    refuses(&cache, &changed, &["files have changed since"]);
    // Nothing in common: nothing to tell.
    let stranger = Key {
        source: "11".repeat(32),
        builder: "rtx 1.8.0.1".into(),
        ..key()
    };
    refuses(&cache, &stranger, &["no engine for it has been built"]);
    match build(&cache, &other, || Ok(b"another".to_vec())).unwrap() {
        Outcome::Built { why, .. } => assert!(why.contains("1.8.0.1"), "{why}"),
        outcome => panic!("{outcome:?}"),
    }
    assert_eq!(cache.load(&key()).unwrap().bytes, ENGINE);
    assert_eq!(cache.load(&other).unwrap().bytes, b"another");
}

#[test]
fn content_that_changed_is_refused() {
    let (_folder, cache, path) = full();
    let mut changed = ENGINE.to_vec();
    changed[7] ^= 1;
    fs::write(&path, &changed).unwrap();
    refuses(&cache, &key(), &["SHA-256 is", "build it again"]);
    assert!(cache.verify(&path).is_err());
    mends(&cache, "SHA-256 is");
    fs::write(&path, &ENGINE[1..]).unwrap();
    refuses(&cache, &key(), &["it has 35 bytes, expected 36"]);
    mends(&cache, "35 bytes");
    fs::write(&path, []).unwrap();
    refuses(&cache, &key(), &["it has 0 bytes"]);
    mends(&cache, "0 bytes");
}

#[test]
fn records_that_are_broken_foreign_or_of_another_engine_are_refused() {
    let (_folder, cache, path) = full();
    let record = path.with_extension("toml");
    let text = fs::read_to_string(&record).unwrap();
    for (changed, part) in [
        ("garbage".to_owned(), "is not a record"),
        (String::new(), "its format is none"),
        (
            text.replace("format = 2", "format = 1"),
            "its format is 1, expected 2",
        ),
        (text.replace("sha256", "sha255"), "is not a record"),
        (
            text.replace("\"rtx 1.7.1.116\"", "\"rtx 1.6.0.1\""),
            "is of another engine: builder: rtx 1.6.0.1",
        ),
        ("#".repeat(2 << 20), "larger than"),
    ] {
        fs::write(&record, changed).unwrap();
        refuses(&cache, &key(), &[part]);
        mends(&cache, part);
    }
    // A pair that was given another's name.
    let other = Key {
        component: "vae_decoder".into(),
        ..key()
    };
    let there = cache.path(&other);
    fs::copy(&path, &there).unwrap();
    fs::copy(&record, there.with_extension("toml")).unwrap();
    refuses(&cache, &other, &["component: unet, now vae_decoder"]);
}

#[test]
fn what_others_could_have_written_is_refused() {
    let (_folder, cache, path) = full();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    for file in [&path, &path.with_extension("toml")] {
        for bits in [0o620, 0o602, 0o666] {
            mode(file, bits);
            refuses(&cache, &key(), &["may be written by others", "chmod go-w"]);
            mode(file, 0o600);
        }
    }
    mode(cache.folder(), 0o777);
    refuses(&cache, &key(), &["may be written by others (mode 777)"]);
    // Nor is anything built there.
    let refused = build(&cache, &key(), || panic!("built in an open folder"));
    assert!(refused.unwrap_err().to_string().contains("mode 777"));
    mode(cache.folder(), 0o755);
    assert_eq!(cache.load(&key()).unwrap().bytes, ENGINE);

    let away = cache.folder().join("away");
    fs::rename(&path, &away).unwrap();
    symlink(&away, &path).unwrap();
    refuses(&cache, &key(), &["is a symbolic link"]);
    mends(&cache, "is a symbolic link");
    assert_eq!(fs::read(&away).unwrap(), ENGINE);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    refuses(&cache, &key(), &["expected a regular file"]);
}

/// Only root can give files away; `cache::trust` has the rule itself.
#[test]
fn what_belongs_to_others_is_refused() {
    // SAFETY: takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return;
    }
    let (_folder, cache, path) = full();
    std::os::unix::fs::chown(&path, Some(54321), None).unwrap();
    refuses(&cache, &key(), &["belongs to user 54321"]);
    std::os::unix::fs::chown(&path, Some(0), None).unwrap();
    std::os::unix::fs::chown(cache.folder(), Some(54321), None).unwrap();
    refuses(&cache, &key(), &["belongs to user 54321"]);
}

#[test]
fn what_a_killed_build_leaves_is_no_engine_and_goes() {
    let (_folder, cache, path) = full();
    // Killed before the record, which is last.
    fs::remove_file(path.with_extension("toml")).unwrap();
    refuses(&cache, &key(), &["no engine for it"]);
    let entries = cache.entries().unwrap();
    let text = entries[0].record.as_ref().unwrap_err().to_string();
    assert!(text.contains("has no record beside it"), "{text}");
    mends(&cache, "no engine for it");
    // Killed while it was written.
    let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
    let part = format!(".{stem}.999999.engine.part");
    fs::write(cache.folder().join(&part), "half").unwrap();
    let work = cache.folder().join(".build-999999-0.part");
    fs::create_dir(&work).unwrap();
    fs::write(work.join("model.onnx"), "x").unwrap();
    // Killed while the old one was replaced.
    fs::remove_file(&path).unwrap();
    let entries = cache.entries().unwrap();
    assert_eq!(entries.len(), 3, "{entries:?}");
    for entry in &entries {
        let text = entry.record.as_ref().unwrap_err().to_string();
        assert!(text.contains("left from a build"), "{text}");
    }
    mends(&cache, "no engine for it");
    assert!(!names(&cache).contains(&part));
    for entry in cache.entries().unwrap() {
        if entry.record.is_err() {
            cache.remove(&entry.path).unwrap();
        }
    }
    let name = path.file_name().unwrap().to_str().unwrap();
    assert_eq!(names(&cache), [name.to_owned(), format!("{stem}.toml")]);
    cache.remove(&path).unwrap();
    assert!(names(&cache).is_empty());
}

#[test]
fn a_failed_build_leaves_nothing_and_the_next_one_works() {
    let (_folder, cache) = cache();
    let failed = build(&cache, &key(), || Err(Error::engine("unet", "no")));
    assert_eq!(failed.unwrap_err().to_string(), "unet: no");
    assert!(names(&cache).is_empty());
    {
        let work = cache.work_folder().unwrap();
        fs::write(work.path().join("model.onnx"), "x").unwrap();
        // In use: not to be cleared away.
        assert!(
            cache
                .remove(work.path())
                .unwrap_err()
                .to_string()
                .contains("in use")
        );
    }
    assert!(names(&cache).is_empty());
    mends(&cache, "no engine for it");
}

#[test]
fn folders_without_room_or_that_cannot_be_written_are_told() {
    let (_folder, cache) = cache();
    let key = key();
    let never = || -> Result<Vec<u8>> { panic!("built without room") };
    let error = cache
        .build(&order(&key, u64::MAX), || Ok(()), never)
        .unwrap_err();
    assert!(error.to_string().contains("too little room"), "{error}");
    assert!(names(&cache).is_empty());
    // Not even root can make folders here.
    let cache = Cache::new(Some(Path::new("/proc/engines"))).unwrap();
    let error = build(&cache, &key, never).unwrap_err().to_string();
    assert!(
        error.contains("/proc/engines") && error.contains("cannot be made"),
        "{error}"
    );
    assert!(cache.load(&key).is_err());
    assert!(cache.entries().unwrap().is_empty());
}

/// Lets the calling thread write only what anybody may, even root's, until this is dropped.
#[cfg(target_os = "linux")]
struct Nobody;

#[cfg(target_os = "linux")]
impl Nobody {
    fn new() -> Self {
        Self::become_user(65534);
        Self
    }

    /// File access of this thread alone: the C library's function would change all threads.
    fn become_user(user: libc::c_long) {
        // SAFETY: changes a number of the calling thread.
        unsafe { libc::syscall(libc::SYS_setfsuid, user) };
    }
}

#[cfg(target_os = "linux")]
impl Drop for Nobody {
    fn drop(&mut self) {
        // SAFETY: takes nothing and cannot fail.
        Self::become_user(unsafe { libc::geteuid() }.into());
    }
}

/// A cache that the system's administrator has filled, say: what is in it is used, and what is missing is told.
#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_is_read() {
    let (folder, cache, _) = full();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    mode(folder.path(), 0o755);
    for entry in fs::read_dir(cache.folder()).unwrap().flatten() {
        mode(&entry.path(), 0o444);
    }
    mode(cache.folder(), 0o555);
    let before = names(&cache);
    let nobody = Nobody::new();
    assert_eq!(cache.load(&key()).unwrap().bytes, ENGINE);
    assert!(cache.holds(&key()).unwrap());
    let never = || -> Result<Vec<u8>> { panic!("built in vain") };
    let there = build(&cache, &key(), never).unwrap();
    assert!(matches!(there, Outcome::Present(_)), "{there:?}");
    let other = Key {
        component: "vae_encoder".into(),
        ..key()
    };
    let error = build(&cache, &other, never).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    let text = error.to_string();
    for part in [cache.folder().to_str().unwrap(), "cannot be written"] {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    drop(nobody);
    assert_eq!(names(&cache), before);
    mode(cache.folder(), 0o700);
}

#[test]
fn of_builders_at_the_same_time_one_builds_and_the_others_wait() {
    let (_folder, cache) = cache();
    let (made, waited) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let start = Barrier::new(4);
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let key = key();
                    let waits = || {
                        waited.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    };
                    cache.build(&order(&key, 1), waits, || {
                        made.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(300));
                        Ok(ENGINE)
                    })
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap().unwrap())
            .collect()
    });
    assert_eq!(made.load(Ordering::Relaxed), 1);
    assert!(waited.load(Ordering::Relaxed) >= 3);
    let built = |outcome: &&Outcome| matches!(outcome, Outcome::Built { .. });
    assert_eq!(outcomes.iter().filter(built).count(), 1);
}

#[test]
fn a_wait_can_be_ended_and_an_engine_that_is_being_built_stays() {
    let (_folder, cache) = cache();
    let (started, go_on) = (mpsc::channel(), mpsc::channel::<()>());
    std::thread::scope(|scope| {
        let (cache, sender, receiver) = (&cache, started.0, go_on.1);
        scope.spawn(move || {
            build(cache, &key(), || {
                sender.send(()).unwrap();
                receiver.recv().unwrap();
                Ok(ENGINE.to_vec())
            })
            .unwrap();
        });
        started.1.recv().unwrap();
        let key = key();
        let stop = || Err(Error::engine("unet", "stopped"));
        let ended = cache.build(&order(&key, 1), stop, || Ok(ENGINE));
        assert_eq!(ended.unwrap_err().to_string(), "unet: stopped");
        let removed = cache.remove(&cache.path(&key)).unwrap_err().to_string();
        assert!(removed.contains("being built"), "{removed}");
        // Another engine is not held up.
        let other = Key {
            component: "vae_encoder".into(),
            ..key.clone()
        };
        let no_wait = || panic!("waited for another engine");
        cache
            .build(&order(&other, 1), no_wait, || Ok(ENGINE))
            .unwrap();
        go_on.0.send(()).unwrap();
    });
    assert_eq!(cache.load(&key()).unwrap().bytes, ENGINE);
}

#[test]
fn a_components_hash_follows_its_files_and_not_where_they_are() {
    let (folder, cache) = cache();
    fs::create_dir(cache.folder()).unwrap();
    fs::set_permissions(cache.folder(), Permissions::from_mode(0o700)).unwrap();
    let hash = |path: &Path| {
        let model = ModelFolder::open(path).unwrap();
        let (mut hashes, mut read) = (Hashes::open(&cache), 0);
        let hash = hashes
            .component(model.unet(), &mut |bytes| read += bytes)
            .unwrap();
        hashes.save();
        assert_eq!(read, fs::metadata(&model.unet().path).unwrap().len());
        hash
    };
    let original = data("odd");
    let first = hash(&original);
    assert_eq!(hash(&original), first);
    let moved = folder.path().join("moved");
    copy(&original, &moved);
    assert_eq!(hash(&moved), first);
    let vae = ModelFolder::open(&original).unwrap();
    let decoder = Hashes::open(&cache).component(vae.vae_decoder(), &mut |_| ());
    assert_ne!(decoder.unwrap(), first);
    // Another name of the producer, of the same length: nothing that the graph's header tells.
    let path = moved.join("unet/model.onnx");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let changed = {
        fs::write(&path, &bytes).unwrap();
        let model = ModelFolder::open(&original).unwrap();
        let mut unet = model.unet().clone();
        unet.path = path;
        Hashes::open(&cache).component(&unet, &mut |_| ()).unwrap()
    };
    assert_ne!(changed, first);
    // Notes that others may have written do not count: a wrong one would let a stale engine pass.
    let notes = cache.folder().join("sources.toml");
    if let Ok(text) = fs::read_to_string(&notes) {
        assert!(text.contains("sha256"), "{text}");
    }
    fs::write(&notes, "garbage").unwrap();
    assert_eq!(hash(&original), first);
}

#[test]
fn what_goes_with_an_engine_is_trusted_as_it_is() {
    let (_folder, cache, path) = full();
    let companion = Companion::new(&path, "NVIDIA GeForce RTX 4090");
    let name = companion.path().file_name().unwrap().to_str().unwrap();
    assert!(name.ends_with(".NVIDIA-GeForce-RTX-4090.kernels"), "{name}");
    assert_eq!(companion.read(), None);
    companion.write(b"kernels").unwrap();
    assert_eq!(companion.read().unwrap(), b"kernels");
    assert_eq!(Companion::new(&path, "another").read(), None);
    companion.write(b"more kernels").unwrap();
    assert_eq!(companion.read().unwrap(), b"more kernels");
    // It is no engine, and no leftover.
    assert_eq!(cache.entries().unwrap().len(), 1);
    let bytes = fs::read(companion.path()).unwrap();
    for wrong in [&bytes[..bytes.len() - 1], &bytes[..20], b""] {
        fs::write(companion.path(), wrong).unwrap();
        assert_eq!(companion.read(), None);
    }
    fs::write(companion.path(), &bytes).unwrap();
    fs::set_permissions(companion.path(), Permissions::from_mode(0o666)).unwrap();
    assert_eq!(companion.read(), None);
    cache.remove(&path).unwrap();
    assert!(names(&cache).is_empty());
}

/// Gigabytes are not hashed at each start. What is noted beside a hash changes with every write, so content that changed is
/// never taken for what was hashed.
#[test]
fn what_was_hashed_is_not_hashed_again_until_it_changes() {
    let (_folder, cache, path) = full();
    let notes = cache.folder().join("sources.toml");
    // A file that was written just now is not noted: it could change again without looking so.
    wait_until("the engine's hash is noted", || {
        assert_eq!(cache.load(&key()).unwrap().bytes, ENGINE);
        fs::read_to_string(&notes).is_ok_and(|text| text.contains(".engine"))
    });
    // With another hash in record and note, the engine is loaded only if it is not hashed.
    let hash = "98ef3e00429a63a61b344690a063ae6a85f650dcf2dd210c61db3092cfde09ba";
    for file in [&path.with_extension("toml"), &notes] {
        let text = fs::read_to_string(file).unwrap();
        assert!(text.contains(hash), "{text}");
        fs::write(file, text.replace(hash, &"0".repeat(64))).unwrap();
    }
    assert_eq!(cache.load(&key()).unwrap().bytes, ENGINE);
    // Who verifies, or is about to build, wants to know for sure.
    let text = cache.verify(&path).unwrap_err().to_string();
    assert!(text.contains("SHA-256 is 98ef"), "{text}");
    assert!(cache.holds(&key()).is_err());
    // The same bytes, written again: another state of the file, which no note is about.
    fs::write(&path, ENGINE).unwrap();
    refuses(&cache, &key(), &["SHA-256 is 98ef", "expected 0000"]);
    mends(&cache, "SHA-256 is");
    let mut changed = ENGINE.to_vec();
    changed[3] ^= 1;
    fs::write(&path, changed).unwrap();
    refuses(&cache, &key(), &["SHA-256 is"]);
    // Notes that others may write are none.
    mends(&cache, "SHA-256 is");
    fs::set_permissions(&notes, Permissions::from_mode(0o666)).unwrap();
    assert_eq!(cache.load(&key()).unwrap().bytes, ENGINE);
}

#[test]
fn writers_of_what_goes_with_an_engine_do_not_get_in_each_others_way() {
    let (_folder, cache, path) = full();
    let contents: Vec<Vec<u8>> = (0..8).map(|i| vec![i; 50_000]).collect();
    std::thread::scope(|scope| {
        for content in &contents {
            let path = &path;
            scope.spawn(move || {
                for _ in 0..10 {
                    Companion::new(path, "GPU").write(content).unwrap();
                }
            });
        }
    });
    let found = Companion::new(&path, "GPU").read().unwrap();
    assert!(contents.contains(&found));
    assert_eq!(names(&cache).len(), 3, "{:?}", names(&cache));
}

#[test]
fn the_folder_is_the_one_asked_for_or_the_users() {
    let folder = Cache::new(Some(Path::new("/a/b"))).unwrap();
    assert_eq!(folder.folder(), Path::new("/a/b"));
    let relative = Cache::new(Some(Path::new("b"))).unwrap();
    assert!(relative.folder().is_absolute());
}

/// How long loading takes at first, when engines are hashed, and then, when they are known.
#[test]
#[ignore = "measures, and needs ENGINES, a folder of built engines"]
fn loading_engines_of_yours() {
    let folder = std::env::var_os("ENGINES").expect("ENGINES");
    let cache = Cache::new(Some(Path::new(&folder))).unwrap();
    for entry in cache.entries().unwrap() {
        let key = entry.record.unwrap().key;
        let times = [(); 3].map(|()| {
            let start = Instant::now();
            cache.load(&key).unwrap();
            start.elapsed()
        });
        println!(
            "{}: {} bytes, {times:.2?}",
            entry.path.display(),
            entry.size
        );
    }
}
