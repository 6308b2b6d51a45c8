// Command lockfabric runs programs under distributed locks, permits and leaderships
// that live in NATS JetStream, has them wait for each other, looks at all that, and serves it.
//
//	lockfabric run nightly-backup -- ./backup.sh
//	lockfabric run encoders --semaphore 3 -- ./encode.sh
//	lockfabric lock nightly-backup
//	lockfabric elect scheduler -- ./schedule.sh
//	lockfabric barrier nightly -n 3 -- ./work.sh
//	lockfabric latch wait migrated --count 2
//
// # Where the locks are
//
// With --server (or LOCKFABRIC_SERVER) they are on that NATS server or cluster, with --context on that of a context
// of the nats command; docs/connecting.md tells of credentials and TLS. Without either, they are on a server of this
// user on this host, which the first command starts in the background and which ends when nobody has used it for some
// minutes. Its locks, store and address are kept in the user's state directory (~/.local/state/lockfabric, by
// XDG_STATE_HOME another one; Application Support on macOS, LocalAppData on Windows), or in LOCKFABRIC_DIR; it
// listens on loopback only and lets in only who can read that directory. Such locks exclude the programs of one user
// on one host, and stay in the store when the server ends.
//
// When that directory is removed or replaced under the server, it notices within some seconds and ends; its holders
// lose their locks, and nobody is let in before their leases have ended. Only where the server was killed in the same
// TTL, its directory is gone too, and holders go on, nothing tells the next server of them.
//
// # What run promises
//
// CMD starts when the lock is held, in a process group of its own, with the standard streams of run, and with
// LOCKFABRIC_KEY and LOCKFABRIC_TOKEN (the fencing token) in its environment. Signals sent to run go to the group.
// When CMD ends the lock is released and its exit code is passed on; what CMD left in the background does not keep
// the lock, unless --wait-children says so, and with --hold-at-least it is released when that time is over. When no
// server answers then, or when run is to end while it waits, that takes some seconds; another signal cuts it short.
//
// All of this is so for permits and for a leadership, too. When the lock is lost while CMD runs, its group gets
// SIGTERM, what is left of it after --kill-after gets SIGKILL, and the exit code is 76 whatever CMD said. Others can
// have the lock already while CMD winds up: only a resource that checks the token is safe then.
//
// Stopping run from a terminal (^Z) stops CMD too, and its lock is not renewed meanwhile: when it is continued after
// the lease has run out, CMD is ended as after any loss. Some signals can't be caught. A run that gets SIGSTOP stops
// alone, and its lock runs out under CMD. A run that gets SIGKILL can't end CMD: on Linux the kernel then sends CMD,
// but not what CMD started, a SIGTERM; elsewhere CMD goes on without a lock. On Windows a signal to run becomes a
// Ctrl-Break for the group.
//
// # Exit codes
//
//	0        success
//	64       the command line makes no sense
//	65       the name is in use as something else, or with another size; or its record can't be read
//	69       the server can't be reached or used
//	70       the result can't be written, or a defect of this program
//	75       run, lock, elect: not acquired or not elected: held by others for the time given by --wait, unless --conflict-exit-code says another one;
//	         barrier, latch wait: not passed in that time; latch delete: somebody waits for it
//	76       run, elect, barrier: lost: the lock, the permit, the leadership or the membership was lost while CMD ran; barrier: its own lease while it waited; lock --stdin: while it held it
//	77       the server refuses the credentials, or a permission that locks need
//	78       doctor: there is a problem (with --strict also a warning, or an unknown)
//	79       barrier: broken: another one gave up or died, or it was reset; latch wait: deleted meanwhile
//	126      run, elect, barrier: CMD can't be executed
//	127      run, elect, barrier: CMD was not found
//	128+n    run, lock, elect, barrier: CMD was, or lockfabric itself while it waited, ended by signal n
//	others   run, elect, barrier: CMD's own
package main
