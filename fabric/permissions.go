package fabric

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

// Role is the role of a NATS user in a fabric.
type Role string

// The roles. Each role includes the permissions of the one before.
const (
	RoleObserver  Role = "observer"  // reads locks, and acquires none
	RoleClient    Role = "client"    // acquires locks in existing buckets
	RoleCoalescer Role = "coalescer" // also executes operations of clients
	RoleAdmin     Role = "admin"     // also creates the buckets, and raises their revisions after a restore
)

var roles = []Role{RoleObserver, RoleClient, RoleCoalescer, RoleAdmin}

func (r Role) includes(o Role) bool { return slices.Index(roles, r) >= slices.Index(roles, o) }

// Permission is a subject that a user must be allowed to use.
type Permission struct {
	Subject   string
	Subscribe bool   // true: subscribe; false: publish
	Helpful   bool   // without it locks are safe, but some operations take longer
	Why       string // what needs it
}

// Permissions returns exactly the permissions that a user of a fabric with so many shards needs for a role. inbox is
// the prefix of the client's reply subjects; it is "_INBOX" by default. docs/security.md describes what each role could
// do if it were hostile. Errors: ErrInvalidOption for an unknown role, and for names that would allow more than
// intended.
func Permissions(fabric string, role Role, inbox string, shards int) ([]Permission, error) {
	if err := (jskv.Config{Fabric: fabric, Shards: shards}).Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidOption, err)
	}
	if inbox == "" || strings.ContainsAny(inbox, "*> \t\r\n\"'") || strings.HasSuffix(inbox, ".") {
		return nil, fmt.Errorf("%w: inbox prefix %q: use one such as _INBOX, without a dot at its end", ErrInvalidOption, inbox)
	}
	if !slices.Contains(roles, role) {
		return nil, fmt.Errorf("%w: role %q: give observer, client, coalescer or admin", ErrInvalidOption, role)
	}
	lf, waits := "lf."+fabric+".", "KV_"+kv.WaitsBucket(fabric)
	all := []Permission{{Subject: inbox + ".>", Subscribe: true, Why: "answers"}}
	if role.includes(RoleClient) {
		all = append(all,
			Permission{Subject: lf + "p.>", Helpful: true, Why: "telling a waiter at once, asking for a kept lock"},
			Permission{Subject: lf + "p.>", Subscribe: true, Helpful: true, Why: "being told at once, as a waiter, and being asked for a kept lock"},
			Permission{Subject: lf + "*.*.op", Helpful: true, Why: "operations that a coalescer carries out"},
			Permission{Subject: lf + "*.hello", Helpful: true, Why: "finding a coalescer"},
			Permission{Subject: lf + "*.beat", Subscribe: true, Helpful: true, Why: "knowing of a coalescer"},
			Permission{Subject: lf + "n.>", Subscribe: true, Helpful: true, Why: "a coalescer's answers"},
		)
	}
	all = append(all,
		Permission{Subject: "$JS.API.STREAM.INFO." + waits, Helpful: true, Why: "deadlock detection"},
		Permission{Subject: "$JS.API.STREAM.MSG.GET." + waits, Helpful: true, Why: "deadlock detection"},
		Permission{Subject: "$JS.API.CONSUMER.CREATE." + waits + ".>", Helpful: true, Why: "showing waits and deadlocks"},
		Permission{Subject: "$JS.API.CONSUMER.DELETE." + waits + ".*", Helpful: true, Why: "showing waits and deadlocks"},
	)
	if role.includes(RoleClient) {
		all = append(all, Permission{Subject: "$KV." + kv.WaitsBucket(fabric) + ".>", Helpful: true, Why: "deadlock detection"})
	}
	for _, bucket := range append(kv.LocksBuckets(fabric, shards), kv.LeasesBucket(fabric)) {
		all = append(all, bucketPermissions(bucket, role)...)
	}
	if role.includes(RoleCoalescer) {
		all = append(all,
			Permission{Subject: lf + "*.*.op", Subscribe: true, Why: "taking operations of clients"},
			Permission{Subject: lf + "*.hello", Subscribe: true, Why: "being found by clients"},
			Permission{Subject: lf + "*.beat", Why: "telling clients that it is there"},
			Permission{Subject: lf + "n.>", Why: "answers to clients"},
		)
	}
	if role.includes(RoleAdmin) {
		all = append(all,
			Permission{Subject: "$JS.API.INFO", Why: "making buckets"},
			Permission{Subject: "$JS.API.STREAM.CREATE." + waits, Why: "making " + kv.WaitsBucket(fabric)},
			Permission{Subject: "$SYS.REQ.USER.INFO", Helpful: true, Why: "the doctor"},
		)
	}
	return all, nil
}

func bucketPermissions(bucket string, role Role) []Permission {
	stream := "KV_" + bucket
	all := []Permission{
		{Subject: "$JS.API.STREAM.INFO." + stream, Why: "opening " + bucket},
		{Subject: "$JS.API.STREAM.MSG.GET." + stream, Why: "reading " + bucket},
		{Subject: "$JS.API.CONSUMER.CREATE." + stream + ".>", Why: "watching " + bucket},
		{Subject: "$JS.API.CONSUMER.DELETE." + stream + ".>", Why: "ending a watch of " + bucket},
		{Subject: "$JS.FC." + stream + ".>", Helpful: true, Why: "flow control of watches"},
		{Subject: "$JS.EVENT.ADVISORY.STREAM.DELETED." + stream, Subscribe: true, Helpful: true, Why: "news that the bucket was deleted"},
		{Subject: "$JS.EVENT.ADVISORY.STREAM.UPDATED." + stream, Subscribe: true, Helpful: true, Why: "news that the bucket was set back"},
		{Subject: "$JS.API.STREAM.PURGE." + stream, Subscribe: true, Helpful: true, Why: "news that entries of the bucket are removed"},
	}
	if role.includes(RoleClient) {
		all = append(all, Permission{Subject: "$KV." + bucket + ".>", Why: "writing " + bucket})
	}
	if role.includes(RoleAdmin) {
		all = append(all,
			Permission{Subject: "$JS.API.STREAM.CREATE." + stream, Why: "making " + bucket},
			Permission{Subject: "$JS.API.STREAM.UPDATE." + stream, Why: "moving " + bucket + " up after a restore"},
			Permission{Subject: "$JS.API.STREAM.PURGE." + stream, Why: "moving " + bucket + " up after a restore"},
		)
	}
	return all
}
