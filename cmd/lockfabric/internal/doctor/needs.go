package doctor

import (
	"cmp"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
)

// need is one right that a program with locks in the fabric needs.
type need fabric.Permission

// needsOf lists what a user needs who makes no buckets.
func needsOf(nc *nats.Conn, name string) (list []need) {
	all, _ := fabric.Permissions(name, fabric.RoleClient, cmp.Or(nc.Opts.InboxPrefix, "_INBOX"))
	for _, p := range all {
		list = append(list, need(p))
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
		begins, _, _ := strings.Cut(n.Subject, "*")
		return n.Helpful && strings.Contains(err.Error(), ` to "`+strings.TrimSuffix(begins, ">"))
	})
}

// String names the right as the server's configuration would.
func (n need) String() string {
	if n.Subscribe {
		return "subscribe " + strconv.Quote(n.Subject)
	}
	return "publish " + strconv.Quote(n.Subject)
}
