package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

// How full an account may be.
const (
	nearlyFull = 0.80
	full       = 0.95
)

// accountInfo is asked by doctor, and by who creates buckets.
const accountInfo = "$JS.API.INFO"

const upgrade = "upgrade to nats-server " + kv.MinServer + " or newer, all servers of the cluster"

func (e *exam) server() {
	s := Server{Address: e.nc.ConnectedAddr(), Name: e.nc.ConnectedServerName(), Version: e.nc.ConnectedServerVersion()}
	e.report.Server, e.report.Cluster.Name = s, e.nc.ConnectedClusterName()
	where := "single server"
	if name := e.report.Cluster.Name; name != "" {
		where = "in cluster " + name
	}
	e.report.ok(checkServer, s.Name, "reached at %s, %s", s.Address, where)
	e.version(s.Name, s.Version)
}

func (e *exam) version(name, version string) {
	switch older, ok := older(version, kv.MinServer); {
	case !ok:
		e.report.unknown(checkVersion, name, fmt.Sprintf("the server says it is %q", version), upgrade)
	case older:
		e.report.problem(checkVersion, name, fmt.Sprintf("nats-server %s lacks what safe locking needs", version), upgrade)
	default:
		e.report.ok(checkVersion, name, "nats-server %s, at least %s is needed", version, kv.MinServer)
	}
}

// older compares versions such as 2.12.0-RC.1 by their first two numbers: a
// preview has the features of its release.
func older(version, than string) (older, ok bool) {
	var v, t [2]int
	_, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &v[0], &v[1])
	_, terr := fmt.Sscanf(than, "%d.%d", &t[0], &t[1])
	return slices.Compare(v[:], t[:]) < 0, err == nil && terr == nil
}

// jetStream reports whether there is any use in asking on.
func (e *exam) jetStream(ctx context.Context) bool {
	const enable = "start nats-server with JetStream (-js, or jetstream {} in its configuration), and enable it for the account"
	s, err := ask(ctx, e, e.rights.lacks(accountInfo), e.kv.Account)
	switch {
	case err == nil:
	case notAllowed(err):
		e.report.unknown(checkJetStream, "", "this user may not ask for the account's state", grantIt+": publish "+strconv.Quote(accountInfo))
		e.report.unknown(checkLimits, "", "this user may not ask for the account's state", grantIt+": publish "+strconv.Quote(accountInfo))
		return true
	case errors.Is(err, kv.ErrNoJetStream):
		e.report.problem(checkJetStream, "", "JetStream is not enabled, on the server or for this account", enable)
		return false
	default:
		e.report.problem(checkJetStream, "", "JetStream does not answer: "+err.Error(),
			"if this is a cluster, see that most of its servers run and reach each other: without a majority nothing is granted")
		return true
	}
	if s.TooOld != nil {
		e.report.problem(checkVersion, "JetStream", s.TooOld.Error(), upgrade)
	}
	e.report.ok(checkJetStream, "", "enabled, API level %d", s.APILevel)
	e.limits(s.Usage)
	e.account = &s
	return true
}

// room tells whether the account leaves room for the buckets that do not exist yet.
func (e *exam) room() {
	missing := 0
	for _, b := range []*jskv.BucketState{e.leases, e.locks} {
		if b != nil && !b.Exists {
			missing++
		}
	}
	if e.account == nil {
		return
	}
	if err := e.kv.Room(*e.account, missing); err != nil {
		e.report.problem(checkLimits, "", "the buckets can't be created: "+err.Error(), "raise that limit of the account, or free what it has in use")
	}
}

func (e *exam) limits(usage []jskv.Usage) {
	var said []string
	for _, u := range usage {
		if u.Limit <= 0 {
			said = append(said, fmt.Sprintf("%s %d", u.Resource, u.Used))
			continue
		}
		part := float64(u.Used) / float64(u.Limit)
		text := fmt.Sprintf("%s %d of %d", u.Resource, u.Used, u.Limit)
		remedy := "raise the account's limit, or free some: with full storage locks are neither granted nor released"
		switch {
		case part >= full:
			e.report.problem(checkLimits, u.Resource, text+" in use", remedy)
		case part >= nearlyFull:
			e.report.warn(checkLimits, u.Resource, text+" in use", remedy)
		default:
			said = append(said, text)
		}
	}
	if len(said) > 0 {
		e.report.ok(checkLimits, "", "in use by the account: %s", strings.Join(said, ", "))
	}
}
