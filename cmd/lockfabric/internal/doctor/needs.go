package doctor

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/kv"
)

// need is one right that a program with locks in the fabric needs.
type need struct {
	subject   string
	subscribe bool   // else publish
	helpful   bool   // without it locks are safe, and some things take longer
	why       string // what needs it
}

// needsOf lists what a user needs who makes no buckets.
func needsOf(nc *nats.Conn, fabric string) []need {
	inbox := nc.Opts.InboxPrefix
	if inbox == "" {
		inbox = "_INBOX"
	}
	hints := "lf." + fabric + ".p.>"
	list := []need{
		{subject: inbox + ".>", subscribe: true, why: "answers"},
		{subject: hints, helpful: true, why: "telling a waiter at once"},
		{subject: hints, subscribe: true, helpful: true, why: "being told at once, as a waiter"},
	}
	for _, bucket := range []string{kv.LocksBucket(fabric), kv.LeasesBucket(fabric)} {
		stream := "KV_" + bucket
		list = append(list,
			need{subject: "$KV." + bucket + ".>", why: "writing " + bucket},
			need{subject: "$JS.API.STREAM.INFO." + stream, why: "opening " + bucket},
			need{subject: "$JS.API.STREAM.MSG.GET." + stream, why: "reading " + bucket},
			need{subject: "$JS.API.CONSUMER.CREATE." + stream + ".>", why: "watching " + bucket},
			need{subject: "$JS.API.CONSUMER.DELETE." + stream + ".>", why: "ending a watch of " + bucket},
			need{subject: "$JS.FC." + stream + ".>", helpful: true, why: "flow control of watches"},
			need{subject: "$JS.EVENT.ADVISORY.STREAM.DELETED." + stream, subscribe: true, helpful: true, why: "news that the bucket was deleted"},
			need{subject: "$JS.EVENT.ADVISORY.STREAM.UPDATED." + stream, subscribe: true, helpful: true, why: "news that the bucket was set back"},
		)
	}
	return list
}

// bearable reports whether an error is the server's refusal of something that locks
// do without: that of a need which is helpful.
func bearable(needs []need, err error) bool {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return false
	}
	// The client gives the server's text, with the subject in quotes, and no more.
	return slices.ContainsFunc(needs, func(n need) bool {
		return n.helpful && strings.Contains(err.Error(), ` to "`+strings.TrimSuffix(n.subject, ">"))
	})
}

// String names the right as the server's configuration would.
func (n need) String() string {
	if n.subscribe {
		return "subscribe " + strconv.Quote(n.subject)
	}
	return "publish " + strconv.Quote(n.subject)
}
