package jskv

import (
	"context"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/kv"
)

// checkKey is the key that CheckAt writes. No lock's name is encoded so, and no list
// shows it, since all that is ever stored there is a delete marker.
const checkKey = "=v"

// headerExpectedSubject names the subject whose revision is compared, where it is not the
// one that is written.
const headerExpectedSubject = "Nats-Expected-Last-Subject-Sequence-Subject"

// CheckAt proves that the key's last revision is rev, without writing the key: no error says that
// it was, at an instant between the call and its return. Unlike a read it can't come from
// a leader that was deposed: a marker is written to another key of the bucket, under the condition
// that this one stands at rev, and it is acknowledged when a quorum has it. It returns the
// marker's revision, which is that instant. The key can be that of a record or of a delete
// marker. Absence, revision 0, can't be proved: it comes back when a marker expires.
//
// Errors: a *ConflictError (ErrConflict) says that the key is or was at another revision, for
// the leader that answered. After ErrBusy, ErrUnknown and ErrNotSent nothing is known. The
// check may then still be stored, which changes nothing: ask again. On a replicated bucket checks
// of a key exclude each other and writes of the key; who loses gets ErrBusy, so check rarely
// what others write. kv.ErrRejected is a key with wildcards, or revision 0.
func (b *Bucket) CheckAt(ctx context.Context, key string, rev uint64) (at uint64, err error) {
	if !validKey(key) || rev == 0 {
		return 0, fmt.Errorf("%w: check of %q at %d: needs the revision of one key", kv.ErrRejected, key, rev)
	}
	reply, err := b.trip(ctx, &nats.Msg{Subject: b.prefix + checkKey, Header: nats.Header{
		headerExpectedRevision: {strconv.FormatUint(rev, 10)},
		headerExpectedSubject:  {b.prefix + key},
		headerOperation:        {"PURGE"},
	}})
	if err != nil {
		return 0, publishError(err)
	}
	return b.parseAck(reply.Data, key, rev)
}
