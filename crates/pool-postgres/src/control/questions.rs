//! What the control connection asks: every statement that it sends, with qualified names, and how often it may be sent.

/// A question about sessions, given as two arrays; a start is written as `session_of` has it.
macro_rules! about_sessions {
    ($what:literal) => {
        concat!(
            "select ",
            $what,
            " from rows from (pg_catalog.unnest($1::pg_catalog.int4[]), pg_catalog.unnest($2::pg_catalog.int8[])) \
             as s(pid, started) cross join lateral pg_catalog.pg_stat_get_activity(s.pid) as a \
             where (pg_catalog.date_part('epoch', a.backend_start) operator(pg_catalog.*) 1000000)::pg_catalog.int8 \
             operator(pg_catalog.=) s.started"
        )
    };
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Question {
    Cancel,
    End,
    /// Who has one of some pids or one of some tags.
    Look,
    /// In which of some databases somebody waits who is not shown: for the lock on the database, in the midst of its opening.
    Hidden,
    /// How many connections the server can hold, and holds.
    Capacity,
}

impl Question {
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::Cancel => about_sessions!("pg_catalog.pg_cancel_backend(s.pid)"),
            Self::End => about_sessions!("pg_catalog.pg_terminate_backend(s.pid)"),
            Self::Hidden => {
                "select d.datname::pg_catalog.text from pg_catalog.pg_locks as l \
                 join pg_catalog.pg_database as d on d.oid operator(pg_catalog.=) l.objid \
                 where not l.granted and l.classid operator(pg_catalog.=) 'pg_catalog.pg_database'::pg_catalog.regclass \
                 and d.datname::pg_catalog.text operator(pg_catalog.=) any ($1::pg_catalog.text[])"
            }
            // Reserved ones are none of ours; `reserved_connections` came with version 16. What kind of session another role's is
            // is not shown to everybody, but its role and
            // its database are, and a client has both.
            Self::Capacity => {
                "select greatest(pg_catalog.current_setting('max_connections')::pg_catalog.int4 \
                 operator(pg_catalog.-) pg_catalog.current_setting('superuser_reserved_connections')::pg_catalog.int4 \
                 operator(pg_catalog.-) coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::pg_catalog.int4, 0), \
                 (select pg_catalog.count(*)::pg_catalog.int4 from pg_catalog.pg_stat_activity \
                 where usesysid is not null and datid is not null \
                 and coalesce(backend_type, 'client backend') operator(pg_catalog.=) 'client backend' \
                 and pid operator(pg_catalog.<>) pg_catalog.pg_backend_pid() \
                 and pid operator(pg_catalog.<>) all ($1::pg_catalog.int4[]))"
            }
            Self::Look => {
                "select pid, \
                 (pg_catalog.date_part('epoch', backend_start) operator(pg_catalog.*) 1000000)::pg_catalog.int8, \
                 pg_catalog.right(application_name, $3) from pg_catalog.pg_stat_get_activity(null) \
                 where pid operator(pg_catalog.=) any ($1::pg_catalog.int4[]) \
                 or pg_catalog.right(application_name, $3) operator(pg_catalog.=) any ($2::pg_catalog.text[])"
            }
        }
    }

    /// How often it is asked. A cancel that was not answered may still be on its way, so that a second one would prove
    /// nothing; the others may be repeated.
    pub(super) fn tries(self) -> u32 {
        match self {
            Self::Cancel => 1,
            Self::End | Self::Look | Self::Hidden | Self::Capacity => 2,
        }
    }
}

/// A question with its arguments.
pub(super) type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, sqlx::postgres::PgArguments>;
