//! The configuration of a dedicated server.

use crate::address::HOST;

/// Later entries override earlier ones, and `postgresql.auto.conf` is read last.
pub(crate) fn settings(port: u16) -> String {
    format!(
        "listen_addresses = '{HOST}'\n\
         port = {port}\n\
         unix_socket_directories = ''\n\
         password_encryption = 'scram-sha-256'\n\
         dynamic_shared_memory_type = mmap\n\
         shared_buffers = 16MB\n\
         max_connections = 30\n\
         superuser_reserved_connections = 3\n\
         authentication_timeout = 10s\n\
         max_wal_senders = 0\n\
         autovacuum = off\n\
         hot_standby = off\n\
         fsync = off\n\
         synchronous_commit = off\n\
         full_page_writes = off\n"
    )
}

/// A line of a configuration file; in a value, a quote is doubled.
pub(crate) fn setting(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_quoted() {
        assert_eq!(setting("max_connections", "200"), "max_connections = '200'\n");
        assert_eq!(setting("search_path", "it's"), "search_path = 'it''s'\n");
    }
}
