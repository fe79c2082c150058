"""Large tables cost less to fill: narrow and partial indexes, keys to sets checked once per statement."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_LARGE = ("measurements", "deepscores")
_TO_SETS = (("measurements", "measurementset_id", "measurement_sets"), ("deepscores", "deepscoreset_id", "deepscore_sets"))


def upgrade() -> None:
    """Replace indexes and keys."""
    for table in (*_LARGE, "objects"):
        op.drop_index(f"ix_{table}_created_at", table)
        op.create_index(f"ix_{table}_created_at", table, ["created_at"], postgresql_using="brin")
    for table in _LARGE:
        for column in ("_bitflag", "_upstream_bitflag"):
            op.drop_index(f"ix_{table}_{column}", table)
            op.create_index(f"ix_{table}_{column}", table, [column], postgresql_where=f"{column} <> 0")
    op.drop_index("ix_measurements_is_bad", "measurements")
    for table, column, parent in _TO_SETS:
        op.drop_index(f"ix_{table}_{column}", table)  # the unique key begins with the column
        op.drop_constraint(f"fk_{table}_{column}", table)
        _check_per_statement(table, column, parent)
    op.drop_constraint("fk_measurements_object_id", "measurements")
    _check_objects()


def _check_per_statement(table: str, column: str, parent: str) -> None:
    """A foreign key with ON DELETE CASCADE whose rows are checked and locked once for every statement.

    PostgreSQL's own key looks the parent up once for every row: 2,000 times for a set of 2,000 rows.
    """
    op.execute(f"""
        CREATE FUNCTION {table}_have_sets() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE lost uuid;
        BEGIN
            PERFORM 1 FROM {parent} WHERE _id IN (SELECT DISTINCT {column} FROM fresh) ORDER BY _id FOR KEY SHARE;
            SELECT f.{column} INTO lost FROM (SELECT DISTINCT {column} FROM fresh) f
                LEFT JOIN {parent} p ON p._id = f.{column} WHERE p._id IS NULL AND f.{column} IS NOT NULL LIMIT 1;
            IF FOUND THEN
                RAISE foreign_key_violation USING CONSTRAINT = 'fk_{table}_{column}', TABLE = '{table}',
                    MESSAGE = format('{table}: {column} %s is not in {parent}', lost);
            END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER {table}_have_sets_insert AFTER INSERT ON {table} REFERENCING NEW TABLE AS fresh
            FOR EACH STATEMENT EXECUTE FUNCTION {table}_have_sets();
        CREATE TRIGGER {table}_have_sets_update AFTER UPDATE ON {table} REFERENCING NEW TABLE AS fresh
            FOR EACH STATEMENT EXECUTE FUNCTION {table}_have_sets();
        CREATE FUNCTION {parent}_take_rows() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            DELETE FROM {table} WHERE {column} IN (SELECT _id FROM gone);
            RETURN NULL;
        END $$;
        CREATE TRIGGER {parent}_take_rows AFTER DELETE ON {parent} REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION {parent}_take_rows();
    """)


def _check_objects() -> None:
    """The foreign key from measurements to objects, ON DELETE SET NULL, checked once for every statement.

    Measurements do not lock the rows of their objects, which is the larger part of what such a key costs: who links
    holds the advisory locks of the sky around its measurements until it commits (`db.linking.lock_sky`: cells of
    order 7), so that a deletion needs only those.
    """
    op.execute("""
        CREATE FUNCTION measurements_have_objects() RETURNS trigger LANGUAGE plpgsql
            SET enable_hashjoin = off SET enable_mergejoin = off AS $$
        DECLARE lost uuid;
        BEGIN
            SELECT f.object_id INTO lost
                FROM (SELECT DISTINCT object_id FROM fresh WHERE object_id IS NOT NULL ORDER BY 1) f
                WHERE NOT EXISTS (SELECT 1 FROM objects o WHERE o._id = f.object_id) LIMIT 1;
            IF FOUND THEN
                RAISE foreign_key_violation USING CONSTRAINT = 'fk_measurements_object_id', TABLE = 'measurements',
                    MESSAGE = format('measurements: object_id %s is not in objects', lost);
            END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER measurements_have_objects_insert AFTER INSERT ON measurements REFERENCING NEW TABLE AS fresh
            FOR EACH STATEMENT EXECUTE FUNCTION measurements_have_objects();
        CREATE TRIGGER measurements_have_objects_update AFTER UPDATE ON measurements REFERENCING NEW TABLE AS fresh
            FOR EACH STATEMENT EXECUTE FUNCTION measurements_have_objects();
        CREATE FUNCTION objects_leave_measurements() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE cells int[];
        BEGIN
            SELECT array_agg(DISTINCT (healpix >> 18)::int ORDER BY (healpix >> 18)::int) INTO cells FROM gone;
            IF cardinality(cells) > 1000 THEN  -- more than the server may have room for
                LOCK TABLE measurements IN SHARE ROW EXCLUSIVE MODE;
            ELSIF cells IS NOT NULL THEN
                PERFORM pg_advisory_xact_lock(1518, c) FROM unnest(cells) WITH ORDINALITY AS t(c, n) ORDER BY n;
            END IF;
            UPDATE measurements SET object_id = NULL WHERE object_id IN (SELECT _id FROM gone);
            RETURN NULL;
        END $$;
        CREATE TRIGGER objects_leave_measurements AFTER DELETE ON objects REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION objects_leave_measurements();
    """)


def downgrade() -> None:
    """Put them back."""
    op.execute("""
        DROP TRIGGER objects_leave_measurements ON objects;
        DROP TRIGGER measurements_have_objects_update ON measurements;
        DROP TRIGGER measurements_have_objects_insert ON measurements;
        DROP FUNCTION objects_leave_measurements();
        DROP FUNCTION measurements_have_objects();
    """)
    op.create_foreign_key("fk_measurements_object_id", "measurements", "objects", ["object_id"], ["_id"],
                          ondelete="SET NULL")
    for table, column, parent in _TO_SETS:
        op.execute(f"""
            DROP TRIGGER {parent}_take_rows ON {parent};
            DROP TRIGGER {table}_have_sets_update ON {table};
            DROP TRIGGER {table}_have_sets_insert ON {table};
            DROP FUNCTION {parent}_take_rows();
            DROP FUNCTION {table}_have_sets();
        """)
        op.create_foreign_key(f"fk_{table}_{column}", table, parent, [column], ["_id"], ondelete="CASCADE")
        op.create_index(f"ix_{table}_{column}", table, [column])
    op.create_index("ix_measurements_is_bad", "measurements", ["is_bad"])
    for table in _LARGE:
        for column in ("_bitflag", "_upstream_bitflag"):
            op.drop_index(f"ix_{table}_{column}", table)
            op.create_index(f"ix_{table}_{column}", table, [column])
    for table in (*_LARGE, "objects"):
        op.drop_index(f"ix_{table}_created_at", table)
        op.create_index(f"ix_{table}_created_at", table, ["created_at"])
