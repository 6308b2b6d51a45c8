//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/lockfabric/lockfabric/cmd/lockfabric/internal/doctor"
	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/internal/lease"
	"github.com/lockfabric/lockfabric/internal/test/testserver"
	"github.com/lockfabric/lockfabric/kv"
)

// remade replaces a bucket by one with another configuration.
func remade(t *testing.T, js jetstream.JetStream, bucket string, spoil func(*jetstream.StreamConfig)) {
	t.Helper()
	cfg := stream(t, js, bucket).Config
	cfg.Metadata = maps.Clone(cfg.Metadata)
	spoil(&cfg)
	testserver.Replace(t, js, cfg)
}

// Every setting that matters, each wrong in a bucket of its own.
func TestDoctorUnsafeBuckets(t *testing.T) {
	t.Parallel()
	const schema, incarnation = "lockfabric.schema", "lockfabric.incarnation"
	for field, spoil := range map[string]func(*jetstream.StreamConfig){
		"metadata." + incarnation:   func(c *jetstream.StreamConfig) { delete(c.Metadata, incarnation) },
		"subjects":                  func(c *jetstream.StreamConfig) { c.Subjects = append(c.Subjects, "more."+c.Name) },
		"retention":                 func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy },
		"max_msgs_per_subject":      func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 5 },
		"max_age":                   func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		"discard":                   func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
		"discard_new_per_subject":   func(c *jetstream.StreamConfig) { c.DiscardNewPerSubject = true },
		"max_msgs":                  func(c *jetstream.StreamConfig) { c.MaxMsgs = 1000 },
		"max_bytes":                 func(c *jetstream.StreamConfig) { c.MaxBytes = 1 << 20 },
		"max_msg_size":              func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1 << 20 },
		"allow_direct":              func(c *jetstream.StreamConfig) { c.AllowDirect = true },
		"allow_msg_ttl":             func(c *jetstream.StreamConfig) { c.AllowMsgTTL, c.SubjectDeleteMarkerTTL = false, 0 },
		"subject_delete_marker_ttl": func(c *jetstream.StreamConfig) { c.SubjectDeleteMarkerTTL = time.Minute },
		"allow_rollup_hdrs": func(c *jetstream.StreamConfig) {
			c.DenyPurge, c.AllowRollup, c.SubjectDeleteMarkerTTL = true, false, 0
		},
		"deny_purge":   func(c *jetstream.StreamConfig) { c.DenyPurge, c.AllowRollup, c.SubjectDeleteMarkerTTL = true, false, 0 },
		"allow_atomic": func(c *jetstream.StreamConfig) { c.AllowAtomicPublish = false },
		"persist_mode": func(c *jetstream.StreamConfig) {
			c.AllowAtomicPublish, c.PersistMode = false, jetstream.AsyncPersistMode
		},
		"no_ack": func(c *jetstream.StreamConfig) { c.NoAck = true },
		"sealed": nil, // by an update only
		"mirror": func(c *jetstream.StreamConfig) {
			*c = jetstream.StreamConfig{Name: c.Name, Metadata: c.Metadata, Mirror: &jetstream.StreamSource{Name: "elsewhere"}}
		},
		"sources": func(c *jetstream.StreamConfig) { c.Sources = []*jetstream.StreamSource{{Name: "elsewhere"}} },
		"subject_transform": func(c *jetstream.StreamConfig) {
			c.SubjectTransform = &jetstream.SubjectTransformConfig{Source: c.Subjects[0], Destination: "there.>"}
		},
	} {
		t.Run(field, func(t *testing.T) {
			t.Parallel()
			js := made(t, server.ClientURL())
			if spoil != nil {
				remade(t, js, "-locks", spoil)
			} else {
				cfg := stream(t, js, "-locks").Config
				cfg.Sealed = true
				if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
					t.Fatal(err)
				}
			}
			d := examine(t, server.ClientURL(), "--no-probe")
			d.exits(78)
			d.has("configuration", doctor.Problem, fabricName(t)+"-locks", "|"+field+" is ", "must be")
			d.has("configuration", doctor.OK, fabricName(t)+"-leases")
		})
	}
	for value, want := range map[string]string{"": "lockfabric.schema is missing", "one": "schema is one", "3": "newer schema"} {
		t.Run("schema "+value, func(t *testing.T) {
			t.Parallel()
			js := made(t, server.ClientURL())
			remade(t, js, "-leases", func(c *jetstream.StreamConfig) {
				if c.Metadata[schema] = value; value == "" {
					delete(c.Metadata, schema)
				}
			})
			d := examine(t, server.ClientURL())
			d.exits(78)
			d.has("bucket", doctor.Problem, "-leases", want)
			d.has("writes", doctor.Unknown, "not in order")
		})
	}
}

// All that is wrong is told, in both buckets at once.
func TestDoctorSeveralFaults(t *testing.T) {
	t.Parallel()
	js := made(t, server.ClientURL())
	for _, bucket := range []string{"-locks", "-leases"} {
		cfg := stream(t, js, bucket).Config
		cfg.AllowDirect, cfg.MaxAge, cfg.Discard = true, time.Hour, jetstream.DiscardOld
		if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	d := examine(t, server.ClientURL())
	d.exits(78)
	for _, bucket := range []string{"-locks", "-leases"} {
		for _, field := range []string{"allow_direct is true, must be false", "max_age is 1h0m0s, must be 0", "discard is "} {
			d.has("configuration", doctor.Problem, bucket, field, "nats stream edit")
		}
	}
	if d.Latency.Acquire != nil {
		t.Error("probed in unsafe buckets")
	}
}

func TestDoctorMemory(t *testing.T) {
	t.Parallel()
	made(t, server.ClientURL(), fabric.WithMemoryStorage())
	d := examine(t, server.ClientURL())
	d.exits(0)
	d.has("storage", doctor.Warning, "-locks", "memory")
	d.has("storage", doctor.Warning, "-leases", "memory")
	d.has("configuration", doctor.OK, "-locks")
	d.has("writes", doctor.OK)
	d.only("storage", "sync")
	examine(t, server.ClientURL(), "--strict").exits(78)
}

// unwatched waits until the stream has no consumer.
func unwatched(t *testing.T, s jetstream.Stream) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		info, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if info.State.Consumers == 0 {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%d consumers of %s after a minute", info.State.Consumers, info.Config.Name)
		}
	}
}

// Opening a fabric takes a consumer of its buckets.
func TestDoctorConsumersOfABucket(t *testing.T) {
	t.Parallel()
	js := made(t, server.ClientURL())
	cfg := stream(t, js, "-leases").Config
	cfg.MaxConsumers = 1
	s, err := js.UpdateStream(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	var d *diagnosis
	for range 3 {
		// A manager closed while it opens a watcher leaves a consumer, for 5 s. It may appear after the first look.
		unwatched(t, s)
		if d = examine(t, server.ClientURL()); d.code == 0 {
			break
		}
	}
	d.exits(0)
	d.has("limits", doctor.Warning, "-leases", "0 of 1 consumers", "--max-consumers=-1")
	d.only("limits", "sync")
	unwatched(t, s)
	if _, err := s.CreateConsumer(t.Context(), jetstream.ConsumerConfig{}); err != nil {
		t.Fatal(err)
	}
	d = examine(t, server.ClientURL())
	d.exits(78)
	d.has("limits", doctor.Problem, "-leases", "1 of 1 consumers")
	cfg.MaxConsumers = -1
	if _, err := js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	d = examine(t, server.ClientURL())
	d.exits(0)
	d.only("sync")
}

// A fabric that no program opens, with either option.
func TestDoctorMixedStorage(t *testing.T) {
	t.Parallel()
	js := made(t, server.ClientURL())
	remade(t, js, "-leases", func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage })
	d := examine(t, server.ClientURL())
	d.exits(78)
	d.has("storage", doctor.Problem, "-locks", "in files", "leases bucket in memory", "delete both buckets")
	d.has("writes", doctor.Unknown, "not in order")
}

// A bucket that was restored from a backup, and the way back.
func TestDoctorRestored(t *testing.T) {
	t.Parallel()
	js := made(t, server.ClientURL())
	before := stream(t, js, "-locks")
	note := fmt.Sprintf(`{"v":1,"incarnation":%q,"longest_ttl":2000,"high_water":%d}`, before.Config.Metadata["lockfabric.incarnation"], before.State.LastSeq+1000)
	put(t, js, "-leases", kv.MetaKey, note)
	d := examine(t, server.ClientURL())
	d.exits(78)
	d.has("sequence", doctor.Problem, fmt.Sprint(before.State.LastSeq+1000), "restored", "holds are void", "nats stream purge KV_"+fabricName(t)+"-locks --seq=")
	d.has("writes", doctor.Unknown, "not in order")
	if now := stream(t, js, "-locks"); now.State.LastSeq != before.State.LastSeq {
		t.Error("a token was given that repeats")
	}

	remade(t, js, "-locks", func(c *jetstream.StreamConfig) { c.FirstSeq = 0 })
	d = examine(t, server.ClientURL())
	d.has("sequence", doctor.Problem)
	d.has("incarnation", doctor.OK)
	_, seq, _ := strings.Cut(d.find("sequence")[0].Remedy, "--seq=")
	var n uint64
	if _, err := fmt.Sscan(seq, &n); err != nil || n <= before.State.LastSeq+1000 {
		t.Fatalf("%q, %v", seq, err)
	}
	s, err := js.Stream(t.Context(), before.Config.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context(), jetstream.WithPurgeSequence(n)); err != nil {
		t.Fatal(err)
	}
	d = examine(t, server.ClientURL())
	d.exits(0)
	d.only("sync")
	l, err := manager(t).Acquire(t.Context(), "k")
	if err != nil || l.Token() < n {
		t.Errorf("token %d after a remedy with %d, %v", l.Token(), n, err)
	}

	// A lease has seen more than the bucket has.
	put(t, js, "-leases", nuid.Next(), fmt.Sprintf(`{"seen":%d}`, n+1_000_000))
	examine(t, server.ClientURL()).has("sequence", doctor.Problem, fmt.Sprint(n+1_000_000))
}

func TestDoctorSequenceByHand(t *testing.T) {
	t.Parallel()
	js := made(t, server.ClientURL())
	remade(t, js, "-locks", func(c *jetstream.StreamConfig) { c.FirstSeq = 0 })
	remade(t, js, "-leases", func(*jetstream.StreamConfig) {}) // it noted what was seen before
	// A stream that is made right after another one of its name was deleted may have its content.
	leases, err := js.Stream(t.Context(), "KV_"+fabricName(t)+"-leases")
	if err == nil {
		err = leases.Purge(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	d := examine(t, server.ClientURL())
	d.exits(0)
	d.has("sequence", doctor.Warning, "did not begin", "--seq=")
}

func TestDoctorIncarnation(t *testing.T) {
	t.Parallel()
	js := made(t, server.ClientURL())
	put(t, js, "-leases", kv.MetaKey, `{"v":1,"incarnation":"another","longest_ttl":20000}`)
	before := stream(t, js, "-locks").State.LastSeq
	d := examine(t, server.ClientURL())
	d.exits(0)
	d.has("incarnation", doctor.Warning, "grants nothing for 22s")
	d.has("writes", doctor.Unknown)
	if stream(t, js, "-locks").State.LastSeq != before {
		t.Error("probed in quarantine")
	}
	put(t, js, "-leases", kv.MetaKey, `nonsense`)
	d = examine(t, server.ClientURL())
	d.exits(78)
	d.has("incarnation", doctor.Problem, "can't be read", kv.MetaKey)
	put(t, js, "-leases", kv.MetaKey, `{"v":2}`)
	examine(t, server.ClientURL()).has("incarnation", doctor.Problem, "newer")
	bucket, err := js.KeyValue(t.Context(), fabricName(t)+"-leases")
	if err == nil {
		err = bucket.Purge(t.Context(), kv.MetaKey)
	}
	if err != nil {
		t.Fatal(err)
	}
	examine(t, server.ClientURL(), "--no-probe").has("incarnation", doctor.OK, "not noted yet")
}

// What lies in the buckets.
func TestDoctorContent(t *testing.T) {
	t.Parallel()
	js := made(t, server.ClientURL())
	entry := func(id string, more string) string {
		return fmt.Sprintf(`{"v":3,"kind":"lock","holders":[{"id":"%s.1","mode":"X","token":"00000000000000000000","ttl":100%s}]}`, id, more)
	}
	live, dead := nuid.Next(), nuid.Next()
	put(t, js, "-leases", live, fmt.Sprintf(`{"v":1,"id":%q,"state":"live","host":"somewhere","pid":7,"ttl":80000000,"margin":5,"nonce":"n"}`, live))
	put(t, js, "-leases", dead, fmt.Sprintf(`{"v":1,"id":%q,"state":"dead","reason":"closed","by":"h:1","at":1,"ttl":1000,"margin":5}`, dead))
	for _, id := range []string{live, dead} {
		b, err := js.KeyValue(t.Context(), fabricName(t)+"-leases")
		if err != nil {
			t.Fatal(err)
		}
		e, err := b.Get(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lease.Decode(id, e.Value()); err != nil {
			t.Fatal("the test writes no lease: ", err)
		}
	}
	put(t, js, "-locks", "fine", entry(live, ""))
	put(t, js, "-locks", kv.CoalescerKey, entry(live, ""))
	d := examine(t, server.ClientURL())
	d.exits(0)
	d.only("sync")
	d.has("records", doctor.OK, "1 in use")
	d.has("leases", doctor.OK, "1 live")
	d.has("coalescer", doctor.OK, "somewhere:7 is the coalescer")
	if b := d.Fabric.Buckets; len(b) != 2 || b[1].Keys != 2 || b[0].Keys < 3 || b[0].Storage != "file" || b[0].Replicas != 1 || b[0].LastSeq == 0 || b[0].FirstSeq == 0 {
		t.Errorf("%+v", b)
	}

	put(t, js, "-locks", "left", entry(dead, ""))
	put(t, js, "-locks", "missing", entry(nuid.Next(), ""))
	d = examine(t, server.ClientURL())
	d.exits(0)
	d.has("leases", doctor.OK, "2 lock(s)", `"left"`, `"missing"`)

	put(t, js, "-locks", "garbled.a", `{"v":3,"kind":"lock","holders":`)
	put(t, js, "-locks", "newer", `{"v":9,"kind":"lock"}`)
	put(t, js, "-locks", "other", `{"v":3,"kind":"quantum"}`)
	put(t, js, "-locks", "not=canonical", `x`)
	put(t, js, "-locks", "revoked", entry(live, `,"revoked":true`))
	put(t, js, "-leases", nuid.Next(), `x`)
	put(t, js, "-leases", "stranger", `x`)
	var seen *diagnosis
	eventually(t, "holder that does not let go", func() bool { // in its TTL and a second
		seen = examine(t, server.ClientURL(), "--no-probe")
		return seen.find("holders")[0].Status != doctor.OK
	})
	d = seen
	d.exits(78)
	d.has("holders", doctor.Warning, "1 lock(s)", `"revoked"`, "--force --now")
	d.has("records", doctor.Problem, "1 record(s) can't be read", `"garbled/a"`)
	d.has("records", doctor.Problem, `newer version: "newer"`)
	d.has("records", doctor.Warning, `kinds that this version does not know: "other"`)
	d.has("keys", doctor.Warning, "-locks", `"not=canonical"`)
	d.has("keys", doctor.Warning, "-leases", `"stranger"`)
	d.has("leases", doctor.Warning, "1 lease(s) can't be read")

	// A text on a terminal keeps its columns, whatever others wrote.
	code, stdout, _ := run(t, lockfabric(t, "doctor", "--no-probe"))
	if code != 78 || !strings.Contains(stdout, "problem") || !strings.Contains(stdout, "-> look at each with 'nats kv get'") || json.Valid([]byte(stdout)) {
		t.Errorf("exit code %d, %s", code, stdout)
	}
}

// A holder that crashed long ago, as its lease shows.
func TestDoctorStaleLease(t *testing.T) {
	t.Parallel()
	js := made(t, server.ClientURL())
	id := nuid.Next()
	put(t, js, "-leases", id, fmt.Sprintf(`{"v":1,"id":%q,"state":"live","ttl":100,"margin":5,"nonce":"n"}`, id))
	put(t, js, "-locks", "k", fmt.Sprintf(`{"v":3,"kind":"lock","holders":[{"id":"%s.1","mode":"X","token":"00000000000000000000","ttl":100}]}`, id))
	eventually(t, "stale lease", func() bool {
		f := examine(t, server.ClientURL(), "--no-probe").find("leases")
		return len(f) == 1 && f[0].Status == doctor.OK && strings.Contains(f[0].Detail, `"k"`)
	})
}

// Without the bucket of waits nobody finds a deadlock.
func TestDoctorDeadlocks(t *testing.T) {
	t.Parallel()
	js := made(t, server.ClientURL())
	examine(t, server.ClientURL(), "--no-probe").has("deadlocks", doctor.OK, "can tell each other")
	if err := js.DeleteStream(t.Context(), "KV_"+kv.WaitsBucket(fabricName(t))); err != nil {
		t.Fatal(err)
	}
	d := examine(t, server.ClientURL(), "--no-probe")
	d.exits(0)
	d.has("deadlocks", doctor.Warning, "does not exist", "may create streams")
}

// Who serves is told, and how long a lock takes on each road.
func TestDoctorMeasuresBothRoads(t *testing.T) {
	t.Parallel()
	coalescer(t)
	d := measured(t)
	d.exits(0)
	d.has("coalescer", doctor.OK, "is the coalescer, of rank 2, 0 wait")
	d.has("writes", doctor.OK, "both over the coalescer")
	if l := d.Latency; l.Coalesced.Median <= 0 || l.Acquire == nil {
		t.Errorf("%+v", l)
	}
}

// measured repeats doctor until the coalescer has answered it in time, which on a busy machine it need not.
func measured(t *testing.T) (d *diagnosis) {
	t.Helper()
	eventually(t, "measure of the coalescer", func() bool {
		d = examine(t, server.ClientURL())
		return d.Latency.Coalesced != nil
	})
	return d
}

// coalescer has somebody serve in the test's fabric, whose buckets go with the test.
func coalescer(t *testing.T) {
	nc, js := dialTo(t, server.ClientURL())
	m, err := fabric.New(t.Context(), nc, fabric.WithFabric(fabricName(t)), fabric.WithCoalescer())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = m.Close()
		for _, bucket := range []string{"-locks", "-leases", "-waits"} {
			_ = js.DeleteStream(context.Background(), "KV_"+fabricName(t)+bucket)
		}
	})
	eventually(t, "it serves", func() bool {
		_ = nc.Publish("lf."+fabricName(t)+".0.hello", nil)
		return m.Stats().Serving > 0
	})
}
