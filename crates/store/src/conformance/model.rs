//! Any sequence of calls, against a model that is too simple to be wrong: every revision's whole map.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

#[derive(Debug, Clone)]
enum Step {
    /// Guards are (key, kind, how many revisions back).
    Txn {
        guards: Vec<(u8, u8, u64)>,
        ops: Vec<(u8, Option<u8>)>,
    },
    List {
        limit: usize,
    },
    Grant,
    /// Puts a key on the lease granted so many grants ago.
    PutLeased {
        key: u8,
        ago: usize,
    },
    Revoke {
        ago: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..6u8;
    prop_oneof![
        8 => (
            proptest::collection::vec((key.clone(), 0..3u8, 0..3u64), 0..3),
            proptest::collection::btree_map(key.clone(), proptest::option::weighted(0.7, any::<u8>()), 0..4),
        ).prop_map(|(guards, ops)| Step::Txn { guards, ops: ops.into_iter().collect() }),
        1 => (0..4usize).prop_map(|limit| Step::List { limit }),
        1 => Just(Step::Grant),
        2 => (key, 0..2usize).prop_map(|(key, ago)| Step::PutLeased { key, ago }),
        1 => (0..2usize).prop_map(|ago| Step::Revoke { ago }),
    ]
}

type Map = BTreeMap<String, Entry>;

#[derive(Default)]
struct Model {
    /// One for each revision, from 0.
    history: Vec<Map>,
    leases: BTreeMap<LeaseId, Vec<String>>,
    granted: Vec<LeaseId>,
}

fn name(key: u8) -> String {
    format!("{}/{key}", key % 2)
}

impl Model {
    fn new() -> Self {
        Self { history: vec![Map::new()], ..Self::default() }
    }

    fn now(&self) -> &Map {
        self.history.last().expect("revision 0 is there")
    }

    fn revision(&self) -> Revision {
        self.history.len() as u64 - 1
    }

    fn holds(&self, guard: &Guard) -> bool {
        match guard {
            Guard::Absent { key } => !self.now().contains_key(key),
            Guard::Modified { key, revision } => self.now().get(key).is_some_and(|e| e.modified == *revision),
            Guard::Created { key, revision } => self.now().get(key).is_some_and(|e| e.created == *revision),
        }
    }

    fn apply(&mut self, ops: &[Op]) -> Revision {
        let (mut map, revision) = (self.now().clone(), self.revision() + 1);
        let mut effect = false;
        for op in ops {
            let (Op::Put { key, .. } | Op::Delete { key }) = op;
            self.leases.values_mut().for_each(|keys| keys.retain(|k| k != key));
            match op {
                Op::Delete { key } => effect |= map.remove(key).is_some(),
                Op::Put { key, value, lease } => {
                    effect = true;
                    let created = map.get(key).map_or(revision, |e| e.created);
                    let entry = Entry { key: key.clone(), value: value.clone(), created, modified: revision };
                    map.insert(key.clone(), entry);
                    if let Some(lease) = lease {
                        self.leases.get_mut(lease).expect("checked by the caller").push(key.clone());
                    }
                }
            }
        }
        if effect {
            self.history.push(map);
        }
        self.revision()
    }
}

/// The lease of so many grants ago, alive or not.
fn lease_of(model: &Model, ago: usize) -> Option<LeaseId> {
    model.granted.iter().rev().nth(ago).copied()
}

async fn take(store: &dyn Store, model: &mut Model, step: Step) {
    match step {
        Step::Txn { guards, ops } => {
            let guards: Vec<Guard> = guards
                .into_iter()
                .map(|(key, kind, back)| match (kind, model.now().get(&name(key))) {
                    (0, _) => absent(&name(key)),
                    (1, entry) => {
                        modified(&name(key), entry.map_or(0, |e| e.modified.saturating_sub(back / 2)))
                    }
                    (_, entry) => {
                        created(&name(key), entry.map_or(0, |e| e.created.saturating_sub(back / 2)))
                    }
                })
                .collect();
            let ops: Vec<Op> = ops
                .into_iter()
                .map(|(key, value)| value.map_or(delete(&name(key)), |value| put(&name(key), [value])))
                .collect();
            let expected = if guards.iter().all(|guard| model.holds(guard)) {
                Txn::Committed(model.apply(&ops))
            } else {
                Txn::Conflict
            };
            assert_eq!(store.txn(guards, ops).await.unwrap(), expected);
        }
        Step::List { limit } => {
            let page = store.list("1/", None, limit).await.unwrap();
            let below = model.now().range("1/".to_owned()..).map(|(_, entry)| entry.clone());
            let expected: Vec<_> = below.take_while(|e| e.key.starts_with("1/")).take(limit.max(1)).collect();
            assert_eq!((page.revision, page.value.entries), (model.revision(), expected));
        }
        Step::Grant => {
            let lease = store.lease_grant(Duration::from_secs(3600)).await.unwrap();
            model.leases.insert(lease, vec![]);
            model.granted.push(lease);
        }
        Step::PutLeased { key, ago } => {
            let Some(lease) = lease_of(model, ago) else { return };
            let op = put_leased(&name(key), lease);
            let result = store.txn(vec![], vec![op.clone()]).await;
            if model.leases.contains_key(&lease) {
                assert_eq!(result.unwrap(), Txn::Committed(model.apply(&[op])));
            } else {
                assert!(result.is_err(), "a key was put on a lease that is gone");
            }
        }
        Step::Revoke { ago } => {
            let Some(lease) = lease_of(model, ago) else { return };
            let result = store.lease_revoke(lease).await;
            assert_eq!(result.is_ok(), model.leases.contains_key(&lease));
            if let Some(keys) = model.leases.remove(&lease) {
                model.apply(&keys.iter().map(|key| delete(key)).collect::<Vec<_>>());
            }
        }
    }
}

/// Follows the watch from a revision and arrives at each revision's map.
async fn replay(store: &dyn Store, model: &Model, from: Revision) {
    let mut watch = store.watch("", from).await.unwrap();
    let mut map = model.history[from as usize].clone();
    for revision in from + 1..=model.revision() {
        let batch = next(&mut *watch).await;
        assert_eq!(batch.revision, revision);
        for event in batch.events {
            match event {
                Event::Put(entry) => drop(map.insert(entry.key.clone(), entry)),
                Event::Deleted { key } => drop(map.remove(&key).expect("only what is there is deleted")),
            }
        }
        assert_eq!(map, model.history[revision as usize], "the watch leads to another revision {revision}");
    }
}

pub fn check<K>(make: impl AsyncFn() -> (Any, K)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(40) });
    let steps = proptest::collection::vec(step(), 0..40);
    let result = runner.run(&(steps, any::<proptest::sample::Index>()), |(steps, from)| {
        runtime.block_on(async {
            let (store, _kept) = make().await;
            let mut model = Model::new();
            for step in steps {
                take(&*store, &mut model, step).await;
            }
            for key in 0..6 {
                let read = store.get(&name(key)).await.unwrap();
                assert_eq!(
                    (read.revision, read.value.as_ref()),
                    (model.revision(), model.now().get(&name(key)))
                );
            }
            replay(&*store, &model, from.index(model.history.len()) as u64).await;
        });
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
