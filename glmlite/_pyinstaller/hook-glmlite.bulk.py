"""A program that names `glmlite.batch` only because the package does. One that calls it has these as hidden imports."""

excludedimports = ["glmlite.bulk.asking", "glmlite.bulk.rows", "glmlite.bulk.work"]
