"""The release command: brings the database's schema up to date."""

import database

if __name__ == "__main__":
    connection = database.open_database()
    steps = database.migrate(connection)
    connection.close()
    print(f"took migration steps {steps}" if steps else "the schema is up to date")
