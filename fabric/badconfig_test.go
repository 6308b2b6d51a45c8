package fabric_test

import (
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/kv"
)

// soundConfig is that of a bucket that the library made.
func soundConfig(t *testing.T, s *site) jetstream.StreamConfig {
	t.Helper()
	name := s.fabric(t)
	if err := s.manager(t, fabric.WithFabric(name)).Close(); err != nil {
		t.Fatal(err)
	}
	stream, err := s.jetStream(t).Stream(waitContext(t), "KV_"+name+"-locks")
	if err != nil {
		t.Fatal(err)
	}
	return stream.CachedInfo().Config
}

func expectUnsafe(t *testing.T, s *site, name, bucket, field string, opts ...fabric.Option) {
	t.Helper()
	_, err := fabric.New(waitContext(t), s.conn(t), append(opts, fabric.WithFabric(name))...)
	var unsafe *kv.ConfigError
	if !errors.Is(err, kv.ErrUnsafeConfig) || !errors.As(err, &unsafe) {
		t.Fatalf("New: %v", err)
	}
	if unsafe.Field != field || unsafe.Bucket != name+bucket || unsafe.Value == "" || unsafe.Want == "" || unsafe.Remedy == "" {
		t.Errorf("%+v, want the field %s of %s", unsafe, field, name+bucket)
	}
}

func spoiled(t *testing.T, s *site, sound jetstream.StreamConfig, field string, spoil func(*jetstream.StreamConfig)) {
	t.Helper()
	name := s.fabric(t)
	cfg := sound
	cfg.Name, cfg.Subjects = "KV_"+name+"-locks", []string{"$KV." + name + "-locks.>"}
	cfg.Metadata = maps.Clone(sound.Metadata)
	spoil(&cfg)
	if _, err := s.jetStream(t).CreateStream(waitContext(t), cfg); err != nil {
		t.Fatal(err)
	}
	expectUnsafe(t, s, name, "-locks", field)
}

func TestUnsafeBuckets(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		sound := soundConfig(t, s)
		for field, spoil := range map[string]func(*jetstream.StreamConfig){
			"metadata.lockfabric.schema":      func(c *jetstream.StreamConfig) { delete(c.Metadata, "lockfabric.schema") },
			"metadata.lockfabric.incarnation": func(c *jetstream.StreamConfig) { delete(c.Metadata, "lockfabric.incarnation") },
			"subjects":                        func(c *jetstream.StreamConfig) { c.Subjects = append(c.Subjects, "more."+c.Name) },
			"retention":                       func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy },
			"max_msgs_per_subject":            func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 5 },
			"max_age":                         func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
			"discard":                         func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
			"discard_new_per_subject":         func(c *jetstream.StreamConfig) { c.DiscardNewPerSubject = true },
			"max_msgs":                        func(c *jetstream.StreamConfig) { c.MaxMsgs = 1000 },
			"max_bytes":                       func(c *jetstream.StreamConfig) { c.MaxBytes = 1 << 20 },
			"max_msg_size":                    func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1 << 20 },
			"allow_direct":                    func(c *jetstream.StreamConfig) { c.AllowDirect = true },
			"allow_msg_ttl":                   func(c *jetstream.StreamConfig) { c.AllowMsgTTL, c.SubjectDeleteMarkerTTL = false, 0 },
			"subject_delete_marker_ttl":       func(c *jetstream.StreamConfig) { c.SubjectDeleteMarkerTTL = time.Minute },
			"allow_atomic":                    func(c *jetstream.StreamConfig) { c.AllowAtomicPublish = false },
			"no_ack":                          func(c *jetstream.StreamConfig) { c.NoAck = true },
			"sources":                         func(c *jetstream.StreamConfig) { c.Sources = []*jetstream.StreamSource{{Name: "elsewhere"}} },
			"subject_transform": func(c *jetstream.StreamConfig) {
				c.SubjectTransform = &jetstream.SubjectTransformConfig{Source: c.Subjects[0], Destination: "there.>"}
			},
			"storage": func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
		} {
			t.Run(field, func(t *testing.T) { spoiled(t, s, sound, field, spoil) })
		}
		// The server lets these go together with others only, which are named first.
		for field, spoil := range map[string]func(*jetstream.StreamConfig){
			"subject_delete_marker_ttl": func(c *jetstream.StreamConfig) { c.DenyPurge, c.AllowRollup, c.SubjectDeleteMarkerTTL = true, false, 0 },
			"allow_atomic": func(c *jetstream.StreamConfig) {
				c.AllowAtomicPublish, c.PersistMode = false, jetstream.AsyncPersistMode
			},
			"subjects": func(c *jetstream.StreamConfig) {
				*c = jetstream.StreamConfig{Name: c.Name, Metadata: c.Metadata, Mirror: &jetstream.StreamSource{Name: "elsewhere"}}
			},
		} {
			t.Run(field+" and more", func(t *testing.T) { spoiled(t, s, sound, field, spoil) })
		}
		t.Run("storage, the other way round", func(t *testing.T) {
			name := s.fabric(t)
			_ = s.manager(t, fabric.WithFabric(name)).Close()
			expectUnsafe(t, s, name, "-leases", "storage", fabric.WithMemoryStorage())
		})
		t.Run("num_replicas", func(t *testing.T) {
			name := s.fabric(t)
			_ = s.manager(t, fabric.WithFabric(name)).Close()
			expectUnsafe(t, s, name, "-leases", "num_replicas", fabric.WithReplicas(3))
		})
	})
}

// The names of our buckets in use for somebody else's.
func TestForeignBuckets(t *testing.T) {
	t.Parallel()
	onBothSites(t, func(t *testing.T, s *site) {
		for _, bucket := range []string{"-locks", "-leases"} {
			name := s.fabric(t)
			theirs, err := s.jetStream(t).CreateKeyValue(waitContext(t), jetstream.KeyValueConfig{Bucket: name + bucket})
			if err != nil {
				t.Fatal(err)
			}
			rev, err := theirs.Put(waitContext(t), "k", []byte("v"))
			if err != nil {
				t.Fatal(err)
			}
			expectUnsafe(t, s, name, bucket, "metadata.lockfabric.schema")
			if e, err := theirs.Get(waitContext(t), "k"); err != nil || e.Revision() != rev {
				t.Errorf("their bucket: %v, %v", e, err)
			}
		}
	})
}

func TestNewerBuckets(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		name := s.fabric(t)
		_ = s.manager(t, fabric.WithFabric(name)).Close()
		js := s.jetStream(t)
		stream, err := js.Stream(waitContext(t), "KV_"+name+"-locks")
		if err != nil {
			t.Fatal(err)
		}
		cfg := stream.CachedInfo().Config
		cfg.Metadata["lockfabric.schema"] = "3"
		if _, err := js.UpdateStream(waitContext(t), cfg); err != nil {
			t.Fatal(err)
		}
		if _, err := fabric.New(waitContext(t), s.conn(t), fabric.WithFabric(name)); !errors.Is(err, kv.ErrNewerSchema) {
			t.Errorf("New: %v", err)
		}
		cfg.Metadata["lockfabric.schema"] = "one"
		if _, err := js.UpdateStream(waitContext(t), cfg); err != nil {
			t.Fatal(err)
		}
		expectUnsafe(t, s, name, "-locks", "metadata.lockfabric.schema")

		name = s.fabric(t)
		_ = s.manager(t, fabric.WithFabric(name)).Close()
		leases := s.bucket(t, name+"-leases")
		if _, err := leases.Put(waitContext(t), kv.MetaKey, []byte(`{"v":2}`)); err != nil {
			t.Fatal(err)
		}
		if _, err := fabric.New(waitContext(t), s.conn(t), fabric.WithFabric(name)); !errors.Is(err, kv.ErrNewerSchema) {
			t.Errorf("New: %v", err)
		}
		if _, err := leases.Put(waitContext(t), kv.MetaKey, []byte(`nonsense`)); err != nil {
			t.Fatal(err)
		}
		expectUnsafe(t, s, name, "-leases", kv.MetaKey)
	})
}
