//! What a supervisor of etcd asks its members: who they are, how they are, and to take or let go one.

use super::channel::{CallError, Channel, Repeat};
use super::messages as m;
use super::{EtcdTls, unavailable};
use crate::StoreError;

const STATUS: &str = "/etcdserverpb.Maintenance/Status";
const DEFRAGMENT: &str = "/etcdserverpb.Maintenance/Defragment";
const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";
const MEMBER_ADD: &str = "/etcdserverpb.Cluster/MemberAdd";
const MEMBER_REMOVE: &str = "/etcdserverpb.Cluster/MemberRemove";
const MEMBER_PROMOTE: &str = "/etcdserverpb.Cluster/MemberPromote";
const MEMBER_LIST: &str = "/etcdserverpb.Cluster/MemberList";

const ALARM_LIST: i32 = 0;
const ALARM_OFF: i32 = 2;
const ALARM_NO_SPACE: i32 = 1;

/// A member of the cluster, by what the members have agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdMember {
    pub id: u64,
    /// Empty until it was started for the first time.
    pub name: String,
    pub peers: Vec<String>,
    pub clients: Vec<String>,
    /// It gets the state and counts for no majority.
    pub is_learner: bool,
}

impl From<m::MemberMessage> for EtcdMember {
    fn from(found: m::MemberMessage) -> Self {
        let m::MemberMessage { id, name, peers, clients, is_learner } = found;
        Self { id, name, peers, clients, is_learner }
    }
}

/// How one member is, by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    pub id: u64,
    pub version: String,
    pub db_bytes: u64,
    pub db_bytes_in_use: u64,
    /// `None`: it knows of no leader, so it can do nothing.
    pub leader: Option<u64>,
    pub errors: Vec<String>,
}

/// Talks to the members about themselves.
pub struct EtcdAdmin {
    channel: Channel,
}

impl std::fmt::Debug for EtcdAdmin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EtcdAdmin")
    }
}

impl EtcdAdmin {
    /// With one endpoint, that member is asked; with several, whichever answers.
    pub fn new(endpoints: Vec<String>, tls: Option<EtcdTls>) -> Self {
        Self { channel: Channel::new(endpoints, tls) }
    }

    async fn ask<A: prost::Message + Default>(
        &self,
        method: &str,
        request: &impl prost::Message,
        repeat: Repeat,
    ) -> Result<A, StoreError> {
        self.channel.call(method, request, repeat).await.map_err(|error: CallError| unavailable(&error))
    }

    pub async fn status(&self) -> Result<MemberStatus, StoreError> {
        let found: m::StatusResponse = self.ask(STATUS, &m::Empty {}, Repeat::Freely).await?;
        Ok(MemberStatus {
            id: found.header.map_or(0, |header| header.member),
            version: found.version,
            db_bytes: found.db_bytes.try_into().unwrap_or(0),
            db_bytes_in_use: found.db_bytes_in_use.try_into().unwrap_or(0),
            leader: (found.leader != 0).then_some(found.leader),
            errors: found.errors,
        })
    }

    pub async fn members(&self) -> Result<Vec<EtcdMember>, StoreError> {
        let found: m::MembersResponse = self.ask(MEMBER_LIST, &m::Empty {}, Repeat::Freely).await?;
        Ok(found.members.into_iter().map(EtcdMember::from).collect())
    }

    /// Tells the members that another one may come, which counts for no majority until it is
    /// [promoted](Self::promote).
    pub async fn add_learner(&self, peer: &str) -> Result<EtcdMember, StoreError> {
        let request = m::MemberAddRequest { peers: vec![peer.to_owned()], is_learner: true };
        let added: m::MemberAddResponse = self.ask(MEMBER_ADD, &request, Repeat::WhenWithoutEffect).await?;
        let added = added.member.ok_or_else(|| StoreError::Unavailable("etcd named no member".into()))?;
        Ok(added.into())
    }

    /// Refused as long as it has not all of the state.
    pub async fn promote(&self, id: u64) -> Result<(), StoreError> {
        let request = m::MemberId { id };
        self.ask::<m::MembersResponse>(MEMBER_PROMOTE, &request, Repeat::WhenWithoutEffect).await.map(drop)
    }

    pub async fn remove_member(&self, id: u64) -> Result<(), StoreError> {
        let request = m::MemberId { id };
        self.ask::<m::MembersResponse>(MEMBER_REMOVE, &request, Repeat::Freely).await.map(drop)
    }

    /// Gives back to the disk what compaction has freed; the member answers nothing else meanwhile.
    pub async fn defragment(&self) -> Result<(), StoreError> {
        self.ask::<m::Done>(DEFRAGMENT, &m::Empty {}, Repeat::Freely).await.map(drop)
    }

    /// Lets a cluster that ran out of its quota take writes again. `false`: none had.
    pub async fn disarm_no_space(&self) -> Result<bool, StoreError> {
        let list = m::AlarmRequest { action: ALARM_LIST, member: 0, alarm: 0 };
        let found: m::AlarmResponse = self.ask(ALARM, &list, Repeat::Freely).await?;
        let full: Vec<_> = found.alarms.into_iter().filter(|alarm| alarm.alarm == ALARM_NO_SPACE).collect();
        for alarm in &full {
            let off = m::AlarmRequest { action: ALARM_OFF, member: alarm.member, alarm: alarm.alarm };
            self.ask::<m::AlarmResponse>(ALARM, &off, Repeat::Freely).await?;
        }
        Ok(!full.is_empty())
    }
}
