package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/internal/jskv"
	"github.com/lockfabric/lockfabric/kv"
)

// Thresholds for the used part of an account's limits.
const (
	nearlyFull = 0.80
	full       = 0.95
)

// accountInfo is used by doctor, and by programs that create buckets.
const accountInfo = "$JS.API.INFO"

const upgrade = "upgrade to nats-server " + kv.MinServer + " or newer, all servers of the cluster"

func (e *exam) server() {
	s := Server{Address: e.nc.ConnectedAddr(), Name: e.nc.ConnectedServerName(), Version: e.nc.ConnectedServerVersion()}
	e.report.Server, e.report.Cluster.Name = s, e.nc.ConnectedClusterName()
	where := "single server"
	if name := e.report.Cluster.Name; name != "" {
		where = "in cluster " + name
	}
	e.report.ok("server", s.Name, "reached at %s, %s", s.Address, where)
	e.version(s.Name, s.Version)
}

func (e *exam) version(name, version string) {
	switch older, ok := older(version, kv.MinServer); {
	case !ok:
		e.report.add(Unknown, "version", name, fmt.Sprintf("the server says it is %q", version), upgrade)
	case older:
		e.report.add(Problem, "version", name, fmt.Sprintf("nats-server %s lacks what safe locking needs", version), upgrade)
	default:
		e.report.ok("version", name, "nats-server %s, at least %s is needed", version, kv.MinServer)
	}
}

// older compares versions by their first two numbers, because a preview has the features of its release.
func older(version, than string) (older, ok bool) {
	var v, t [2]int
	_, err := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d", &v[0], &v[1])
	_, terr := fmt.Sscanf(than, "%d.%d", &t[0], &t[1])
	return slices.Compare(v[:], t[:]) < 0, err == nil && terr == nil
}

// jetStream reports whether further checks make sense.
func (e *exam) jetStream(ctx context.Context) bool {
	const enable = "start nats-server with JetStream (-js, or jetstream {} in its configuration), and enable it for the account"
	s, err := ask(ctx, e, e.rights.lacks(accountInfo), e.kv.Account)
	switch {
	case err == nil:
	case notAllowed(err):
		e.report.add(Unknown, "jetstream", "", "this user may not ask for the account's state", grantIt+": publish "+strconv.Quote(accountInfo))
		e.report.add(Unknown, "limits", "", "this user may not ask for the account's state", grantIt+": publish "+strconv.Quote(accountInfo))
		return true
	case errors.Is(err, kv.ErrNoJetStream):
		e.report.add(Problem, "jetstream", "", "JetStream is not enabled, on the server or for this account", enable)
		return false
	default:
		e.report.add(Problem, "jetstream", "", "JetStream does not answer: "+err.Error(),
			"if this is a cluster, see that most of its servers run and reach each other: without a majority nothing is granted")
		return true
	}
	if s.TooOld != nil {
		e.report.add(Problem, "version", "JetStream", s.TooOld.Error(), upgrade)
	}
	e.report.ok("jetstream", "", "enabled, API level %d", s.APILevel)
	e.limits(s.Usage)
	e.account = &s
	return true
}

// room checks whether the account has room for the buckets that do not exist yet.
func (e *exam) room() {
	missing := 0
	for _, b := range append([]*jskv.BucketState{e.leases}, e.all...) {
		if b != nil && !b.Exists {
			missing++
		}
	}
	if e.account == nil {
		return
	}
	if err := e.kv.Room(*e.account, missing); err != nil {
		e.report.add(Problem, "limits", "", "the buckets can't be created: "+err.Error(), "raise that limit of the account, or free what it has in use")
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
			e.report.add(Problem, "limits", u.Resource, text+" in use", remedy)
		case part >= nearlyFull:
			e.report.add(Warning, "limits", u.Resource, text+" in use", remedy)
		default:
			said = append(said, text)
		}
	}
	if len(said) > 0 {
		e.report.ok("limits", "", "in use by the account: %s", strings.Join(said, ", "))
	}
}

// pingServers is answered by every server, with sync_always and sync_interval, but only for the system account.
const pingServers = "$SYS.REQ.SERVER.PING.JSZ"

// quiet is the time without a further answer after which all servers have answered.
const quiet = 750 * time.Millisecond

const setSync = "set 'sync_interval: always' in the jetstream block of each server's configuration, and restart them one by one; " +
	"until then a power failure can lose locks that were granted"

const askSystem = "ask as the system account: --system-server nats://user:password@host:4222, or --system-creds FILE; " +
	"or look for sync_interval in the jetstream block of each server's configuration"

type serverAnswer struct {
	Server struct {
		Name    string `json:"name"`
		Cluster string `json:"cluster"`
		Version string `json:"ver"`
	} `json:"server"`
	Data struct {
		Disabled bool `json:"disabled"`
		Config   struct {
			SyncInterval time.Duration `json:"sync_interval"`
			SyncAlways   bool          `json:"sync_always"`
		} `json:"config"`
	} `json:"data"`
	Error *struct {
		Description string `json:"description"`
	} `json:"error"`
}

func (e *exam) sync(ctx context.Context) {
	r := e.report
	if e.SyncAlways {
		r.Cluster.Servers = append(r.Cluster.Servers, Member{Name: r.Server.Name, Version: r.Server.Version, SyncAlways: true})
		r.ok("sync", r.Server.Name, "every write is on disk before it is acknowledged")
		return
	}
	if e.SystemError != nil {
		r.add(Unknown, "sync", "", "the system account can't be asked: "+e.SystemError.Error(), "check --system-server and --system-creds")
		return
	}
	nc := cmp.Or(e.System, e.nc)
	answers, err := ask(ctx, e, e.System == nil && e.rights.lacks(pingServers), func(ctx context.Context) ([]serverAnswer, error) {
		return everyServer(ctx, nc)
	})
	switch {
	case err == nil:
	case e.System == nil:
		r.add(Unknown, "sync", "", "only the system account sees when the servers write to disk", askSystem)
		return
	default:
		r.add(Unknown, "sync", "", "these credentials are not those of a system account, or no server answers them: "+err.Error(), askSystem)
		return
	}
	slices.SortFunc(answers, func(a, b serverAnswer) int { return cmp.Compare(a.Server.Name, b.Server.Name) })
	for _, a := range answers {
		if a.Server.Cluster == r.Cluster.Name && (a.Server.Cluster != "" || a.Server.Name == r.Server.Name) {
			e.member(a)
		}
	}
	if len(r.Cluster.Servers) == 0 {
		r.add(Unknown, "sync", "", "none of the servers that answer is of this cluster and has JetStream", askSystem)
	}
}

func (e *exam) member(a serverAnswer) {
	r, name := e.report, a.Server.Name
	if name != r.Server.Name {
		e.version(name, a.Server.Version)
	}
	if a.Error != nil {
		r.add(Unknown, "sync", name, "it answers: "+a.Error.Description, "look at its log")
		return
	}
	if a.Data.Disabled {
		return // it stores nothing
	}
	m := Member{Name: name, Version: a.Server.Version, SyncAlways: a.Data.Config.SyncAlways}
	if m.SyncAlways {
		r.ok("sync", name, "every write is on disk before it is acknowledged")
	} else {
		m.SyncInterval = a.Data.Config.SyncInterval
		r.add(Warning, "sync", name, fmt.Sprintf("writes are acknowledged up to %v before they are on disk", m.SyncInterval), setSync)
	}
	r.Cluster.Servers = append(r.Cluster.Servers, m)
}

// everyServer asks all servers and returns the answers.
func everyServer(ctx context.Context, nc *nats.Conn) ([]serverAnswer, error) {
	sub, err := nc.SubscribeSync(nc.NewInbox())
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }()
	if err := nc.PublishRequest(pingServers, sub.Subject, nil); err != nil {
		return nil, err
	}
	var all []serverAnswer
	for wait := stepTimeout; ; wait = quiet {
		one, cancel := context.WithTimeout(ctx, wait)
		msg, err := sub.NextMsgWithContext(one)
		cancel()
		if err != nil {
			if len(all) > 0 && errors.Is(err, context.DeadlineExceeded) {
				return all, nil
			}
			return nil, err
		}
		var a serverAnswer
		if err := json.Unmarshal(msg.Data, &a); err != nil {
			return nil, fmt.Errorf("an answer can't be read: %w", err)
		}
		all = append(all, a)
	}
}
