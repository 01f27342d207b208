#!/bin/sh
# One database and one owner each for Airflow, MLflow and the ledger; no role may connect to another's database.
# PostgreSQL's image runs this once, when the volume is empty. It may be run again at any time: it creates what is
# missing and sets the passwords of the environment.
set -eu

: "${POSTGRES_USER:?}" "${AIRFLOW_DB_PASSWORD:?}" "${MLFLOW_DB_PASSWORD:?}" "${LEDGER_DB_PASSWORD:?}"
export PGPASSWORD="${POSTGRES_PASSWORD:?}"

superuser() {
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres "$@"
}

# The password travels in the environment and not among the arguments, and a failing statement is not logged with it.
prepare() {
    superuser --set name="$1" --set variable="$2" <<'SQL'
\getenv password :variable
SET log_min_error_statement = panic;
SET log_statement = none;
SELECT format('CREATE ROLE %I', :'name')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}

prepare airflow AIRFLOW_DB_PASSWORD
prepare mlflow MLFLOW_DB_PASSWORD
prepare ledger LEDGER_DB_PASSWORD
superuser --command 'REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC'
