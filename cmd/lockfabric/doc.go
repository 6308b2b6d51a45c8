// Command lockfabric runs programs under distributed locks, semaphore permits and leaderships that are stored in
// NATS JetStream KV. It also synchronizes programs, shows the state of all locks, and runs the server.
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
// With --server (or LOCKFABRIC_SERVER), the locks are on that NATS server or cluster. With --context, they are on the
// server of a context of the nats command. docs/connecting.md describes credentials and TLS.
//
// Without either, the locks are on a local server of this user on this host. The first command starts it in the
// background, and it ends when nobody has used it for some minutes. Its store and address are kept in the user's state
// directory (~/.local/state/lockfabric, or below XDG_STATE_HOME; Application Support on macOS, LocalAppData on Windows),
// or in LOCKFABRIC_DIR. It listens on loopback only, and admits only users who can read this directory. Its locks exclude
// programs of one user on one host, and they stay in the store when the server ends.
//
// If this directory is removed or replaced while the server runs, the server notices it within some seconds and ends. Its
// holders lose their locks, and no new client is admitted before their leases have ended. One case is not covered: the
// server is killed, and its directory is removed, within one TTL. The next server then does not know of the old holders.
//
// # What run promises
//
// CMD starts when the lock is held. It runs in its own process group, with the standard streams of run, and with
// LOCKFABRIC_KEY and LOCKFABRIC_TOKEN (the fencing token) in its environment. Signals sent to run are passed on to the
// group. When CMD ends, the lock is released, and run ends with CMD's exit code. Processes that CMD left in the background
// do not keep the lock, unless --wait-children is given. With --hold-at-least, the lock is released at the end of that time.
// If no server answers at the end, or when run must end while it waits, this takes some seconds; another signal ends it
// at once.
//
// The same is true for permits and for a leadership. If the lock is lost while CMD runs, the group gets SIGTERM. What is
// left of it after --kill-after gets SIGKILL. The exit code is 76, whatever CMD returned. Others can already
// have the lock while CMD is ending: only a resource that checks the token is safe then.
//
// If run is stopped from a terminal (^Z), CMD is stopped as well, and the lock is not renewed. If run is continued after
// the lease has ended, CMD is ended, as after any loss. Some signals can't be caught. SIGSTOP to run stops only
// run, and the lock is lost while CMD continues. SIGKILL to run prevents it from ending CMD: on Linux the kernel then sends
// SIGTERM to CMD, but not to processes that CMD has started. On other systems CMD continues without a lock. On Windows, a
// signal to run becomes a Ctrl-Break for the group.
//
// # Exit codes
//
//	0        success
//	64       the command line is invalid
//	65       the name is in use as another kind or with another size, or its record is unreadable
//	69       the server can't be reached or used
//	70       the result can't be written, or a defect of this program
//	75       run, lock, elect: not acquired or not elected within --wait, because others hold it; --conflict-exit-code sets another code;
//	         barrier, latch wait: not passed within --wait; latch delete: somebody waits for it
//	76       run, elect, barrier: the lock, the permit, the leadership or the membership was lost while CMD ran; barrier: its own lease was lost while it waited; lock --stdin: the lock was lost
//	77       the server refuses the credentials, or a permission that locks need
//	78       doctor: there is a problem (with --strict also a warning, or an unknown)
//	79       barrier: broken, because another party gave up or died, or because of a reset; latch wait: the latch was deleted
//	126      run, elect, barrier: CMD can't be executed
//	127      run, elect, barrier: CMD was not found
//	128+n    run, lock, elect, barrier: signal n ended CMD, or lockfabric itself while it waited
//	others   run, elect, barrier: the exit code of CMD
package main
