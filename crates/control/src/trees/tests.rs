//! The disk as a cache of a bucket that is kept in memory. A real one is in the stories (`stories/artifacts.rs`).

use std::fmt;

use futures_util::StreamExt;
use object_store::aws::AwsCredential;
use object_store::memory::InMemory;

use super::credentials::Source;
use super::*;

struct Scene {
    directory: tempfile::TempDir,
    bucket: Arc<dyn ObjectStore>,
    trees: Trees,
}

fn address() -> BucketAddress {
    match "s3://team/rung".parse() {
        Ok(Place::Bucket(address)) => address,
        other => panic!("it was read as {other:?}"),
    }
}

fn scene(part: Part) -> Scene {
    let bucket: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let directory = tempfile::tempdir().unwrap();
    let disk: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(directory.path()).unwrap());
    let credential = AwsCredential { key_id: "a".into(), secret_key: "b".into(), token: None };
    let of = Bucket::over(address(), bucket.clone(), Source::Environment(Arc::new(credential)));
    let trees = Trees::made(directory.path(), disk, Some((of, part)), false);
    Scene { directory, bucket, trees }
}

/// An archive with one file, and its digest.
fn archive(text: &str) -> (Digest, Vec<u8>) {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("a"), text).unwrap();
    let mut archive = Vec::new();
    let packed = rung_artifact::pack_source(source.path(), &mut archive).unwrap();
    (packed.digest, archive)
}

fn stream(bytes: &[u8]) -> impl Stream<Item = Result<Bytes, fmt::Error>> + Unpin + use<> {
    let chunks: Vec<_> = bytes.chunks(700).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    futures_util::stream::iter(chunks)
}

async fn read(trees: &Trees, digest: &Digest) -> Result<Vec<u8>, ErrorBody> {
    let chunks = trees.get(digest).await?.map(|chunk| chunk.unwrap().to_vec());
    Ok(chunks.collect::<Vec<_>>().await.concat())
}

impl Scene {
    async fn put(&self, text: &str) -> (Digest, Vec<u8>) {
        let (digest, bytes) = archive(text);
        self.trees.put(&digest, Limits::source(), stream(&bytes)).await.unwrap();
        (digest, bytes)
    }

    fn bucket_of(&self) -> &Bucket {
        self.trees.any_bucket().unwrap()
    }

    fn forget(&self, digest: &Digest) {
        std::fs::remove_file(self.directory.path().join(object_path(digest).as_ref())).unwrap();
    }
}

#[tokio::test]
async fn what_is_stored_is_in_the_bucket_and_comes_back_to_a_disk_that_lost_it() {
    let scene = scene(Part::Home);
    let (digest, bytes) = scene.put("one").await;
    assert!(
        scene.bucket.head(&object_path(&digest)).await.is_ok(),
        "the upload was answered without the bucket"
    );
    assert!(scene.directory.path().join(PLACE_FILE).exists(), "later starts would not know the bucket");
    scene.forget(&digest);
    assert!(scene.trees.has(&digest).await.unwrap());
    assert_eq!(read(&scene.trees, &digest).await.unwrap(), bytes);
    assert!(scene.trees.is_on_disk(&digest).await.unwrap(), "it is fetched each time");
}

#[tokio::test]
async fn what_was_changed_in_the_bucket_is_never_handed_out_and_counts_as_missing_until_it_is_stored_anew() {
    let scene = scene(Part::Home);
    let (digest, bytes) = scene.put("one").await;
    let (_, other) = archive("another");
    for wrong in [other, b"no archive".to_vec(), bytes[..bytes.len() / 2].to_vec()] {
        scene.bucket.put(&object_path(&digest), wrong.into()).await.unwrap();
        scene.forget(&digest);
        let refused = read(&scene.trees, &digest).await.unwrap_err();
        assert_eq!(refused.code, Code::InvalidArchive);
        assert!(refused.message.contains("in s3://team/rung is damaged"), "{refused}");
        assert!(!scene.trees.is_on_disk(&digest).await.unwrap(), "something wrong was kept");
        assert!(!scene.trees.has(&digest).await.unwrap(), "whoever deploys would not send it again");
        // Packed anew: an archive has the time of its files in it.
        let (_, again) = scene.put("one").await;
        assert!(
            read(&scene.trees, &digest).await.unwrap() == again,
            "something else than what was stored anew"
        );
    }
}

#[tokio::test]
async fn the_cache_drops_what_was_brought_longest_ago_and_nothing_that_is_nowhere_else() {
    let scene = scene(Part::Home);
    let (first, bytes) = scene.put("one").await;
    let (second, _) = scene.put("two").await;
    let path = scene.directory.path().join(object_path(&first).as_ref());
    let earlier = SystemTime::now() - Duration::from_secs(60);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(earlier).unwrap();
    scene.trees.trim(scene.bucket_of(), bytes.len() as u64 * 3 / 2).await.unwrap();
    let on_disk =
        [scene.trees.is_on_disk(&first).await.unwrap(), scene.trees.is_on_disk(&second).await.unwrap()];
    assert_eq!(on_disk, [false, true]);
    scene.bucket.delete(&object_path(&second)).await.unwrap();
    scene.bucket_of().list().await.unwrap();
    scene.trees.trim(scene.bucket_of(), 0).await.unwrap();
    assert!(scene.trees.is_on_disk(&second).await.unwrap(), "the last copy was dropped");
    assert!(scene.trees.has(&second).await.unwrap());
    assert!(scene.bucket.head(&object_path(&second)).await.is_ok(), "it was not sent to the bucket again");
}

#[tokio::test]
async fn only_whoever_plans_prunes_the_bucket_and_spares_what_is_needed() {
    let scene = scene(Part::Home);
    let (needed, _) = scene.put("one").await;
    let (old, _) = scene.put("two").await;
    let in_use = || BTreeSet::from([needed.clone()]);
    let there = async |digest: &Digest| scene.bucket.head(&object_path(digest)).await.is_ok();
    assert_eq!(
        scene.trees.prune(in_use, Duration::from_secs(60), true).await.unwrap(),
        0,
        "uploads are spared"
    );
    // Ages are counted in whole seconds.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(scene.trees.prune(in_use, Duration::ZERO, false).await.unwrap(), 1, "its own cache");
    assert!(there(&old).await, "a server that does not plan took it from the others");
    assert_eq!(scene.trees.prune(in_use, Duration::ZERO, true).await.unwrap(), 1);
    assert_eq!([there(&needed).await, there(&old).await], [true, false]);
    assert!(scene.trees.is_known_to_have(&needed).await && !scene.trees.is_known_to_have(&old).await);
}

#[tokio::test]
async fn an_upload_that_the_bucket_does_not_take_leaves_nothing_behind() {
    let data = tempfile::tempdir().unwrap();
    rung_api::seal::write_private(
        &data.path().join("artifacts.credentials"),
        b"AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=s3cret\n",
    )
    .unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let place = format!("s3://team/rung?endpoint=http://{nobody}").parse().unwrap();
    let directory = data.path().join("artifacts");
    let trees = Trees::open(&directory, &Setting { place: Some(place), systemd: None }).unwrap();
    let (digest, bytes) = archive("one");
    let refused = trees.put(&digest, Limits::source(), stream(&bytes)).await.unwrap_err();
    assert_eq!(refused.code, Code::Unavailable);
    let said = format!("storing artifact {digest} in s3://team/rung: connecting to {nobody} failed");
    assert!(refused.message.starts_with(&said), "{refused}");
    assert!(!trees.is_on_disk(&digest).await.unwrap(), "the next deploy would not send it");
    assert!(!directory.join(PLACE_FILE).exists(), "a bucket that was never reached is written down");
}

#[tokio::test]
async fn a_bucket_that_is_left_is_read_and_not_written() {
    let scene = scene(Part::Left);
    let (digest, bytes) = archive("one");
    scene.bucket.put(&object_path(&digest), bytes.clone().into()).await.unwrap();
    assert_eq!(read(&scene.trees, &digest).await.unwrap(), bytes);
    let (new, _) = scene.put("two").await;
    assert!(scene.bucket.head(&object_path(&new)).await.is_err(), "it was stored where nobody will look");
}

#[test]
fn where_artifacts_are_is_kept_until_they_are_brought_back() {
    let bucket = |text: &str| match text.parse() {
        Ok(Place::Bucket(address)) => address,
        other => panic!("{other:?}"),
    };
    let kept = bucket("s3://team/rung?endpoint=http://10.0.0.9:9000");
    assert_eq!(decide(None, None).unwrap(), None);
    assert_eq!(decide(None, Some(kept.clone())).unwrap(), Some((kept.clone(), Part::Home)));
    assert_eq!(decide(Some(Place::Disk), Some(kept.clone())).unwrap(), Some((kept.clone(), Part::Left)));
    let moved = bucket("s3://team/rung?endpoint=http://10.0.0.8:9000");
    let said = Some(Place::Bucket(moved.clone()));
    assert_eq!(
        decide(said, Some(kept.clone())).unwrap(),
        Some((moved, Part::Home)),
        "the store has a new address"
    );
    let said = Some(Place::Bucket(bucket("s3://other")));
    let refused = decide(said, Some(kept)).unwrap_err().to_string();
    assert!(refused.contains("--artifacts disk"), "{refused}");
}
